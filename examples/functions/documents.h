// Causal attention within documents that are packed into one sequence. params: the number of tokens of a sequence, and the
// document of each token of each sequence of the batch.
bool keep(tessera::Index i, const float* params) {
  const float* document = params + 1 + i.batch * static_cast<int>(params[0]);
  return i.key <= i.query && document[i.query] == document[i.key];
}
