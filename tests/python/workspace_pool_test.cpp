// The pool behind the Python module's calls: no Python here, so that the sanitizers see its threads.
#include "workspace_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

namespace tessera::python {
namespace {

TEST(WorkspacePool, KeepsABufferForTheNextCall) {
  WorkspacePool pool;
  const std::byte* first = nullptr;
  {
    const auto lease = pool.lease(1000);
    first = lease.bytes().data();
    EXPECT_EQ(lease.bytes().size(), 1000U);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % kWorkspaceAlignment, 0U);
    EXPECT_EQ(pool.idle_bytes(), 0U);
  }
  EXPECT_EQ(pool.idle_bytes(), 1000U);
  const auto smaller = pool.lease(400);
  EXPECT_EQ(smaller.bytes().data(), first);
  EXPECT_EQ(smaller.bytes().size(), 400U);
}

TEST(WorkspacePool, ALargerBufferReplacesTheLargest) {
  WorkspacePool pool;
  {
    const auto a = pool.lease(100);
    const auto b = pool.lease(200);
  }
  EXPECT_EQ(pool.idle_bytes(), 300U);
  {
    const auto c = pool.lease(150);
  }
  EXPECT_EQ(pool.idle_bytes(), 300U);
  {
    const auto d = pool.lease(500);
  }
  EXPECT_EQ(pool.idle_bytes(), 600U);
}

TEST(WorkspacePool, NothingIsKeptOfNothing) {
  WorkspacePool pool;
  {
    EXPECT_TRUE(pool.lease(0).bytes().empty());
  }
  EXPECT_EQ(pool.idle_bytes(), 0U);
}

TEST(WorkspacePool, ClearFreesWhatIsIdleAlone) {
  WorkspacePool pool;
  {
    const auto a = pool.lease(100);
  }
  const auto held = pool.lease(50);
  {
    const auto b = pool.lease(70);
  }
  pool.clear();
  EXPECT_EQ(pool.idle_bytes(), 0U);
  std::fill(held.bytes().begin(), held.bytes().end(), std::byte{1});
}

TEST(WorkspacePool, ThreadsNeverShareABuffer) {
  WorkspacePool pool;
  constexpr int kThreads = 4;
  constexpr int kRounds = 500;
  std::vector<int> disturbed(kThreads, 0);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&pool, &disturbed, t] {
        for (int round = 0; round < kRounds; ++round) {
          const auto lease = pool.lease(1 + (round * 37 + t * 101) % 300);
          const std::span<std::byte> bytes = lease.bytes();
          std::fill(bytes.begin(), bytes.end(), std::byte(t));
          std::this_thread::yield();
          disturbed[static_cast<std::size_t>(t)] +=
              std::any_of(bytes.begin(), bytes.end(), [t](std::byte b) { return b != std::byte(t); }) ? 1 : 0;
        }
      });
    }
  }
  EXPECT_EQ(disturbed, std::vector<int>(kThreads, 0));
  EXPECT_LE(pool.idle_bytes(), kThreads * 300U);
}

}  // namespace
}  // namespace tessera::python
