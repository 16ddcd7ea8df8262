#include "nccl/library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "tessera/error.h"
#include "tessera/nccl.h"

namespace tessera::internal {

namespace {

constexpr const char* kDefaultName = "libnccl.so.2";

struct Loaded {
  Nccl nccl{};
  std::optional<std::string> missing;
};

Loaded load() {
  Loaded loaded;
  const char* named = std::getenv("TESSERA_NCCL_LIBRARY");
  const std::string name = named != nullptr && *named != '\0' ? named : kDefaultName;
  void* library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    loaded.missing = "there is no NCCL (" + name + " was not found; TESSERA_NCCL_LIBRARY can name it)";
    return loaded;
  }
  const auto bind = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(library, symbol));
    if (function == nullptr && !loaded.missing) {
      loaded.missing = "NCCL in " + name + " is too old: it has no " + symbol;
    }
  };
  Nccl& n = loaded.nccl;
  bind(n.get_version, "ncclGetVersion");
  bind(n.error_string, "ncclGetErrorString");
  bind(n.get_unique_id, "ncclGetUniqueId");
  bind(n.init_rank_config, "ncclCommInitRankConfig");
  bind(n.async_error, "ncclCommGetAsyncError");
  bind(n.finalize, "ncclCommFinalize");
  bind(n.destroy, "ncclCommDestroy");
  bind(n.abort, "ncclCommAbort");
  bind(n.group_start, "ncclGroupStart");
  bind(n.group_end, "ncclGroupEnd");
  bind(n.send, "ncclSend");
  bind(n.receive, "ncclRecv");
  return loaded;
}

const Loaded& loaded_library() {
  static const Loaded loaded = load();
  return loaded;
}

}  // namespace

std::optional<std::string> nccl_library_missing() { return loaded_library().missing; }

const Nccl& nccl() {
  if (const auto& missing = loaded_library().missing) {
    throw Error(ErrorCode::unsupported, *missing);
  }
  return loaded_library().nccl;
}

}  // namespace tessera::internal

namespace tessera {

std::optional<std::string> nccl_missing() { return internal::nccl_library_missing(); }

std::string nccl_version() {
  int version = 0;
  internal::nccl().get_version(&version);
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace tessera
