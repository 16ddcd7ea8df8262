// A sliding window with holes (Beltagy et al. 2020, Longformer, Section 3.1). params: the dilation and the width of the window.
bool keep(tessera::Index i, const float* params) {
  const int distance = i.query - i.key;
  return distance >= 0 && distance < static_cast<int>(params[1]) && distance % static_cast<int>(params[0]) == 0;
}
