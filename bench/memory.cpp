// Memory that attention needs besides its inputs: outputs, LSE and the workspace that the Plan predicts. Every allocation
// of this process goes through counters, and a run must allocate the predicted workspace to the byte and nothing else.
#include <fmt/core.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "workload.h"

namespace {

std::atomic<std::int64_t> g_live_bytes{0};
std::atomic<std::int64_t> g_peak_bytes{0};

void count(std::int64_t bytes) {
  const std::int64_t live = g_live_bytes.fetch_add(bytes) + bytes;
  std::int64_t peak = g_peak_bytes.load();
  while (live > peak && !g_peak_bytes.compare_exchange_weak(peak, live)) {
  }
}

// The size stands before the block, in as much room as keeps the block aligned.
void* counted_new(std::size_t size, std::size_t alignment) {
  const std::size_t room = std::max(alignment, alignof(std::max_align_t));
  const std::size_t whole = (size + 2 * room - 1) / room * room;
  auto* block = static_cast<std::byte*>(std::aligned_alloc(room, whole));
  if (block == nullptr) {
    throw std::bad_alloc();
  }
  new (block) std::size_t(size);
  count(static_cast<std::int64_t>(size));
  return block + room;
}

void counted_delete(void* pointer, std::size_t alignment) noexcept {
  if (pointer != nullptr) {
    std::byte* block = static_cast<std::byte*>(pointer) - std::max(alignment, alignof(std::max_align_t));
    count(-static_cast<std::int64_t>(*reinterpret_cast<std::size_t*>(block)));
    std::free(block);
  }
}

}  // namespace

void* operator new(std::size_t size) { return counted_new(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted_new(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* pointer) noexcept { counted_delete(pointer, 1); }
void operator delete(void* pointer, std::size_t /*size*/) noexcept { counted_delete(pointer, 1); }
void operator delete(void* pointer, std::align_val_t alignment) noexcept {
  counted_delete(pointer, static_cast<std::size_t>(alignment));
}
void operator delete(void* pointer, std::size_t /*size*/, std::align_val_t alignment) noexcept {
  counted_delete(pointer, static_cast<std::size_t>(alignment));
}

namespace {

using tessera::bench::Case;
using tessera::bench::Workload;

std::int64_t malloc_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<std::int64_t>(info.uordblks + info.hblkhd);
}

// Prints one row; true when the run allocated what the plan said.
bool measure(const Case& settings) {
  Workload workload(settings);
  const std::int64_t predicted = workload.plan().workspace_bytes();
  const std::int64_t live_before = g_live_bytes.load();
  g_peak_bytes.store(live_before);
  workload.run_without_workspace();
  const std::int64_t allocated = g_peak_bytes.load() - live_before;

  workload.make_workspace();  // the thread pools exist since the run above
  const std::int64_t malloc_before = malloc_bytes();
  const std::int64_t before = g_live_bytes.load();
  g_peak_bytes.store(before);
  workload.run();
  const bool quiet = g_peak_bytes.load() == before && malloc_bytes() == malloc_before;

  const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); };
  const bool right = allocated == predicted && quiet;
  fmt::print("{:<10} {:<9} {:>8} {:>14.2f} {:>14.2f} {:>16} {:>16} {:>14.2f}  {}\n", settings.impl,
             tessera::pass_name(settings.pass), settings.length, mib(workload.output_bytes()), mib(predicted),
             predicted, allocated, mib(workload.output_bytes() + allocated), right ? "exact" : "WRONG");
  std::fflush(stdout);
  return right;
}

int print_table(std::int64_t flash_length, std::int64_t standard_length, std::int64_t dim) {
  fmt::print("head dim {}, float32, one head, dense; outputs are O and LSE, or dQ, dK and dV\n\n", dim);
  fmt::print("{:<10} {:<9} {:>8} {:>14} {:>14} {:>16} {:>16} {:>14}\n", "impl", "pass", "length", "outputs MiB",
             "workspace MiB", "predicted bytes", "allocated bytes", "together MiB");
  bool right = true;
  for (const auto pass : {tessera::Pass::forward, tessera::Pass::backward}) {
    Case settings;
    settings.pass = pass;
    settings.dim = dim;
    settings.threads = 0;
    settings.length = flash_length;
    right = measure(settings) && right;
    settings.impl = "standard";
    settings.length = standard_length;
    const auto rows = tessera::implementations();
    const bool available =
        std::any_of(rows.begin(), rows.end(), [](const auto& row) { return row.name == "standard" && row.available; });
    if (available) {
      right = measure(settings) && right;
    } else {
      fmt::print("standard   is not in this build\n");
    }
  }
  return right ? 0 : 1;
}

int parse_and_run(int argc, char** argv) {
  std::int64_t flash_length = 65536;
  std::int64_t standard_length = 8192;
  std::int64_t dim = 64;
  CLI::App app("Peak extra memory of flash and standard attention against the plan's prediction");
  app.add_option("--flash-length", flash_length, "sequence length for flash")->check(CLI::PositiveNumber);
  app.add_option("--standard-length", standard_length, "sequence length for standard")->check(CLI::PositiveNumber);
  app.add_option("--dim", dim, "head dimension")->check(CLI::Range(1, 512));
  CLI11_PARSE(app, argc, argv);
  return print_table(flash_length, standard_length, dim);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return parse_and_run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
