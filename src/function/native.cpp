#include "function/native.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

#include "cuda/jit/cache.h"
#include "function/host_compiler.h"
#include "function/source.h"
#include "tessera/error.h"

namespace tessera::internal {

namespace {

// The rows that Impls call, around the user's function.
constexpr std::string_view kScoreRows = R"(
namespace tessera::internal {
struct UserScore {
  template <class T>
  static T score(T s, Index i, const float* params) { return math::user::score<T>(s, i, params); }
};
}
#define TESSERA_EXPORT extern "C" __attribute__((visibility("default"))) void
using tessera::internal::FunctionRow;
using tessera::internal::UserScore;
TESSERA_EXPORT tessera_float_row(const FunctionRow& row, const float* params, float* s) {
  tessera::internal::score_row<UserScore>(row, params, s);
}
TESSERA_EXPORT tessera_float_slopes(const FunctionRow& row, const float* params, float* s, float* slopes) {
  tessera::internal::score_row_and_slopes<UserScore>(row, params, s, slopes);
}
TESSERA_EXPORT tessera_double_row(const FunctionRow& row, const float* params, double* s) {
  tessera::internal::score_row<UserScore>(row, params, s);
}
TESSERA_EXPORT tessera_double_slopes(const FunctionRow& row, const float* params, double* s, double* slopes) {
  tessera::internal::score_row_and_slopes<UserScore>(row, params, s, slopes);
}
)";

// With or without parameters: the first that compiles.
constexpr std::string_view kMaskRow = R"(
namespace tessera::internal {
template <class I>
auto call_keep(I i, const float* params, int) -> decltype(math::user::keep(i, params)) { return math::user::keep(i, params); }
template <class I>
auto call_keep(I i, const float*, long) -> decltype(math::user::keep(i)) { return math::user::keep(i); }
struct UserMask {
  static bool keep(Index i, const float* params) { return call_keep(i, params, 0); }
};
}
extern "C" __attribute__((visibility("default"))) void tessera_mask_row(const tessera::internal::FunctionRow& row,
                                                                        const float* params, unsigned char* keeps) {
  tessera::internal::mask_row<tessera::internal::UserMask>(row, params, keeps);
}
)";

std::string translation_unit(const UserFunction& function, std::string_view rows) {
  std::string text = "#line 1 \"tessera/function_support.h\"\n";
  text.append(function_support_text()).append(wrapped_source(function)).append("#line 1 \"rows\"").append(rows);
  return text;
}

// A shared object from memory: what was verified is what is loaded. The descriptor stays open, since the loader takes a file of
// the same name for the same library, and names here have nothing but its number.
void* load(const std::vector<std::byte>& image, const std::string& name) {
  const int file = ::memfd_create("tessera-function", MFD_CLOEXEC);
  std::size_t written = 0;
  while (file >= 0 && written < image.size()) {
    const ssize_t more = ::write(file, image.data() + written, image.size() - written);
    if (more < 0 && errno != EINTR) {
      break;
    }
    written += static_cast<std::size_t>(std::max<ssize_t>(more, 0));
  }
  if (file < 0 || written < image.size()) {
    const std::string cause = std::strerror(errno);
    if (file >= 0) {
      ::close(file);
    }
    throw Error(ErrorCode::io, "function '" + name + "' cannot be written to memory: " + cause);
  }
  void* const library = ::dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const cause = ::dlerror();
    ::close(file);
    throw Error(ErrorCode::io, "function '" + name + "' cannot be loaded: " + (cause == nullptr ? "" : cause));
  }
  return library;
}

template <class Row>
Row find(void* library, const char* symbol) {
  return reinterpret_cast<Row>(::dlsym(library, symbol));
}

NativeScore rows_of(void* library, NativeScore /*kind*/) {
  return {find<decltype(NativeScore::float_row)>(library, "tessera_float_row"),
          find<decltype(NativeScore::float_slopes)>(library, "tessera_float_slopes"),
          find<decltype(NativeScore::double_row)>(library, "tessera_double_row"),
          find<decltype(NativeScore::double_slopes)>(library, "tessera_double_slopes")};
}

NativeMask rows_of(void* library, NativeMask /*kind*/) {
  return {find<decltype(NativeMask::row)>(library, "tessera_mask_row")};
}

void* compile(const UserFunction& function, std::string_view field, std::string_view rows) {
  const KernelCompiler& compiler = host_compiler();
  if (const auto reason = compiler.unavailable()) {
    throw Error(ErrorCode::unsupported, std::string(field) + ": '" + function.name() + "' is not compiled: " + *reason);
  }
  const CompileJob job{translation_unit(function, rows), "host", {}};
  try {
    return load(find_or_compile(compiler, job, default_cache_folder()), function.name());
  } catch (const Error& error) {
    if (error.code() != ErrorCode::invalid_argument) {
      throw;
    }
    throw Error(ErrorCode::invalid_argument,
                std::string(field) + ": '" + function.name() + "' does not compile:\n" + error.what());
  }
}

// One compilation for each source, whatever its parameters; others wait for it.
template <class Native>
Native native_of(const UserFunction& function, std::string_view field, std::string_view rows) {
  static std::mutex mutex;
  static std::map<std::pair<std::string, std::string>, Native> known;
  const std::lock_guard lock(mutex);
  const auto key = std::pair(function.name(), function.source());
  const auto found = known.find(key);
  if (found != known.end()) {
    return found->second;
  }
  const Native native = rows_of(compile(function, field, rows), Native{});
  known.emplace(key, native);
  return native;
}

}  // namespace

std::optional<std::string> native_unavailable(const ScoreFunction& function) {
  return function.native().float_row != nullptr ? std::nullopt : host_compiler().unavailable();
}

ScoreFunction compiled(const ScoreFunction& function) {
  if (function.native().float_row != nullptr) {
    return function;
  }
  return {native_of<NativeScore>(function, "score_function", kScoreRows), function.source(), function.params(),
          function.name()};
}

NativeMask native_mask(const MaskFunction& function) {
  return function.native().row != nullptr ? function.native()
                                          : native_of<NativeMask>(function, "mask_function", kMaskRow);
}

}  // namespace tessera::internal
