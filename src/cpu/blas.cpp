#include "cpu/blas.h"

#ifdef TESSERA_HAVE_OPENBLAS
#include <cblas.h>

#include <algorithm>
#include <cctype>
#include <mutex>
#else
#include "tessera/error.h"
#endif

namespace tessera::internal {

#ifdef TESSERA_HAVE_OPENBLAS

namespace {

std::mutex g_users_mutex;
int g_users = 0;
int g_threads_before = 1;

}  // namespace

std::optional<std::string> blas_unavailable() { return std::nullopt; }

std::string blas_name() {
  std::string name = std::string("openblas-") + openblas_get_corename();
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

SingleThreadedBlas::SingleThreadedBlas() {
  const std::lock_guard lock(g_users_mutex);
  if (g_users++ == 0) {
    g_threads_before = openblas_get_num_threads();
    openblas_set_num_threads(1);
  }
}

SingleThreadedBlas::~SingleThreadedBlas() {
  const std::lock_guard lock(g_users_mutex);
  if (--g_users == 0) {
    openblas_set_num_threads(g_threads_before);
  }
}

void sgemm(const GemmShape& shape, float alpha, const MatrixView& a, const MatrixView& b, bool accumulate, float* c,
           std::int64_t c_row_stride) {
  if (shape.rows == 0 || shape.columns == 0) {
    return;
  }
  if (shape.inner == 0) {
    for (std::int64_t row = 0; row < shape.rows && !accumulate; ++row) {
      std::fill_n(c + row * c_row_stride, shape.columns, 0.0F);
    }
    return;
  }
  const auto transpose = [](const MatrixView& m) { return m.transposed ? CblasTrans : CblasNoTrans; };
  const auto size = [](std::int64_t n) { return static_cast<blasint>(n); };
  cblas_sgemm(CblasRowMajor, transpose(a), transpose(b), size(shape.rows), size(shape.columns), size(shape.inner),
              alpha, a.data, size(a.row_stride), b.data, size(b.row_stride), accumulate ? 1.0F : 0.0F, c,
              size(c_row_stride));
}

#else

std::optional<std::string> blas_unavailable() { return "this build has no OpenBLAS"; }

std::string blas_name() { return ""; }

SingleThreadedBlas::SingleThreadedBlas() = default;
SingleThreadedBlas::~SingleThreadedBlas() = default;

void sgemm(const GemmShape& /*shape*/, float /*alpha*/, const MatrixView& /*a*/, const MatrixView& /*b*/,
           bool /*accumulate*/, float* /*c*/, std::int64_t /*c_row_stride*/) {
  throw Error(ErrorCode::internal, "sgemm was called in a build that has no OpenBLAS");
}

#endif

}  // namespace tessera::internal
