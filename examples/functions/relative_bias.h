// The relative position bias of T5 (Raffel et al. 2020): a number for each head and distance, the same for all distances of
// kFarthest or more. params: a row of 2 * kFarthest + 1 numbers for each head, from key kFarthest before the query on.
constexpr int kFarthest = 128;

template <class T>
T score(T s, tessera::Index i, const float* params) {
  const int distance = max(-kFarthest, min(i.key - i.query, kFarthest));
  return s + params[i.head * (2 * kFarthest + 1) + kFarthest + distance];
}
