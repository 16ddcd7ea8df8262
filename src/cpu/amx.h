// Whether this process may use the tile registers of AMX.
#pragma once

namespace tessera::internal {

// True where the CPU multiplies bfloat16 tiles and the operating system keeps their registers. Linux grants them to a
// process that asks; this asks, for all threads and once for all. Signal stacks made later have to have room for them.
bool amx_bf16_usable();

}  // namespace tessera::internal
