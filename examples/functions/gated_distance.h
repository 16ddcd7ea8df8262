// A penalty of distance that a score opens and closes itself: strong matches pay it, weak ones do not. params: the strength.
template <class T>
T score(T s, tessera::Index i, const float* params) {
  const T gate = (T(1) + tanh(s)) / 2;
  return s - params[0] * gate * log(1.0F + abs(i.distance()));
}
