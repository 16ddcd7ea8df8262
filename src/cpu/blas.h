// The one BLAS routine that the standard algorithm needs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace tessera::internal {

// Why there is no BLAS; nullopt when there is one.
std::optional<std::string> blas_unavailable();
// The kernels that the BLAS runs, for example "openblas-haswell".
std::string blas_name();

// While one exists, every sgemm runs in the thread that calls it; the setting of the process comes back with the last.
class SingleThreadedBlas {
 public:
  SingleThreadedBlas();
  ~SingleThreadedBlas();
  SingleThreadedBlas(const SingleThreadedBlas&) = delete;
  SingleThreadedBlas& operator=(const SingleThreadedBlas&) = delete;
};

// A row-major matrix of floats, or its transpose.
struct MatrixView {
  const float* data = nullptr;
  std::int64_t row_stride = 0;
  bool transposed = false;
};

// C [rows, columns] = alpha A [rows, inner] B [inner, columns], added to C with `accumulate`.
struct GemmShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t inner = 0;
};
void sgemm(const GemmShape& shape, float alpha, const MatrixView& a, const MatrixView& b, bool accumulate, float* c,
           std::int64_t c_row_stride);

}  // namespace tessera::internal
