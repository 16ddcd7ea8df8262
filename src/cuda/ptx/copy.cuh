// The copy engine: tensor and linear bulk copies (PTX ISA, "cp.async.bulk"), and the fence between ordinary writes to
// shared memory and what it and the tensor cores read.
#pragma once

#include "cuda/ptx/device.cuh"
#include "cuda/tensor_map.h"

namespace tessera::ptx {

// Box at (column, row, head, batch) of a tensor to shared memory; what lies outside the tensor arrives as zeros.
TESSERA_DEVICE void copy_box(void* s_target, const TensorMap& map, std::uint64_t* bar, int column, int row, int head,
                             int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(s_target)),
      "l"(&map), "r"(shared_address(bar)), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

// The description of a tensor, which the engine otherwise fetches with the first box.
TESSERA_DEVICE void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The same box to the L2 cache alone.
TESSERA_DEVICE void prefetch_box(const TensorMap& map, int column, int row, int head, int batch) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(column),
               "r"(row), "r"(head), "r"(batch)
               : "memory");
}

// Box of shared memory to (column, row, head, batch) of a tensor; what lies outside the tensor is left out.
TESSERA_DEVICE void store_box(const TensorMap& map, const void* s_source, int column, int row, int head, int batch) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(shared_address(s_source)), "r"(column), "r"(row), "r"(head), "r"(batch)
               : "memory");
}

// Addresses and sizes in multiples of 16 bytes.
TESSERA_DEVICE void copy_bytes(void* s_target, const void* g_source, int bytes, std::uint64_t* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(s_target)),
               "l"(g_source), "r"(bytes), "r"(shared_address(bar))
               : "memory");
}

// g_target[i] += s_source[i].
TESSERA_DEVICE void reduce_add(float* g_target, const void* s_source, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(g_target),
               "r"(shared_address(s_source)), "r"(bytes)
               : "memory");
}

// g_target[i] = s_source[i].
TESSERA_DEVICE void store_bytes(void* g_target, const void* s_source, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(g_target),
               "r"(shared_address(s_source)), "r"(bytes)
               : "memory");
}

TESSERA_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until all but the latest `kPending` groups have read their shared memory.
template <int kPending>
TESSERA_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Until all but the latest `kPending` groups are complete, their writes included.
template <int kPending>
TESSERA_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// After ordinary writes to shared memory and before the barrier that hands them to tensor cores or the copy engine.
TESSERA_DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace tessera::ptx
