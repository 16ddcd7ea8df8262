// NCCL, loaded when it is first needed: the build needs none of it. Declared from its documented interface, which is stable
// since 2.14.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace tessera::internal {

struct NcclCommOpaque;
using NcclComm = NcclCommOpaque*;
using NcclResult = int;

inline constexpr NcclResult kNcclSuccess = 0;
inline constexpr NcclResult kNcclInProgress = 7;
inline constexpr int kNcclBytes = 0;  // ncclInt8

struct NcclUniqueId {
  char bytes[128];
};

// ncclConfig_t as of 2.14; newer libraries take their defaults for the rest.
struct NcclConfig {
  std::size_t size = sizeof(NcclConfig);
  unsigned magic = 0xCAFEBEEF;
  unsigned version = 21400;
  int blocking = 0;
  int unused = -2147483647 - 1;  // "undefined" to NCCL
};

struct Nccl {
  NcclResult (*get_version)(int*);
  const char* (*error_string)(NcclResult);
  NcclResult (*get_unique_id)(NcclUniqueId*);
  NcclResult (*init_rank_config)(NcclComm*, int, NcclUniqueId, int, NcclConfig*);
  NcclResult (*async_error)(NcclComm, NcclResult*);
  NcclResult (*finalize)(NcclComm);
  NcclResult (*destroy)(NcclComm);
  NcclResult (*abort)(NcclComm);
  NcclResult (*group_start)();
  NcclResult (*group_end)();
  NcclResult (*send)(const void*, std::size_t, int, int, NcclComm, void*);
  NcclResult (*receive)(void*, std::size_t, int, int, NcclComm, void*);
};

std::optional<std::string> nccl_library_missing();
// Throws Error(unsupported) with that reason.
const Nccl& nccl();

}  // namespace tessera::internal
