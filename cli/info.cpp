// tessera info: what this build and this machine have.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <string>

#include "cli/commands.h"
#include "cli/flag_values.h"
#include "cli/ranks.h"
#include "cli/support.h"
#include "cli/terminal.h"
#include "cuda/memory.h"
#include "tessera/error.h"
#include "tessera/plan.h"
#include "tessera/version.h"

namespace tessera::cli {

namespace {

struct Processor {
  std::string model = "unknown";
  std::set<std::string> features;
};

// From /proc/cpuinfo; what it does not say stays unknown.
Processor processor() {
  Processor result;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(':');
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon == 0 ? 0 : colon - 1) + 1);
    const std::string value = colon == std::string::npos ? "" : line.substr(std::min(colon + 2, line.size()));
    if (key == "model name") {
      result.model = value;
    } else if (key == "flags" || key == "Features") {
      std::istringstream words(value);
      for (std::string word; words >> word;) {
        result.features.insert(word);
      }
      break;
    }
  }
  return result;
}

std::string features_that_matter(const Processor& cpu) {
  constexpr std::array kNames{"avx2",        "fma",         "f16c",     "avx_vnni", "avx512f",  "avx512bw",
                              "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "asimd",
                              "asimdhp",     "bf16",        "sve",      "sve2"};
  std::string text;
  for (const char* name : kNames) {
    if (cpu.features.contains(name)) {
      text.append(text.empty() ? "" : ", ").append(name);
    }
  }
  return text.empty() ? "none that Tessera looks for" : text;
}

void print_row(const char* name, const std::string& value) { fmt::print("  {:<12}{}\n", name, value); }

std::string device_row(const CudaDeviceInfo& device, const std::string& driver) {
  return fmt::format("{}, compute capability {}.{}, {} multiprocessors, {}, driver for CUDA {}", device.name,
                     device.capability_major, device.capability_minor, device.multiprocessors,
                     bytes_text(static_cast<double>(device.memory_bytes)), driver);
}

std::string matrix_rate_text(int device) {
  try {
    return fmt::format("matrix rate {:.0f} TFLOP/s, bfloat16", internal::measure_matrix_rate(device) / 1e12);
  } catch (const Error& error) {  // a device that the kernels are not for
    return fmt::format("matrix rate: {}", error.what());
  }
}

void print_cuda(bool measure) {
  const CudaInfo cuda = cuda_info();
  if (cuda.devices.empty()) {
    print_row("cuda", fmt::format("{}  {}", red("not available"), cuda.unavailable));
  }
  for (const CudaDeviceInfo& device : cuda.devices) {
    print_row(fmt::format("cuda:{}", device.index).c_str(), device_row(device, cuda.driver));
    if (measure) {
      print_row("", matrix_rate_text(device.index));
    }
  }
}

int print_info(bool measure) {
  const CpuInfo cpu = cpu_info();
  const Processor found = processor();
  fmt::print("{}\n\n", bold(fmt::format("tessera {}", kVersion)));
  print_row("compiler", TESSERA_COMPILER);
  print_row("build type", TESSERA_BUILD_TYPE);
  if (!std::string_view(TESSERA_SANITIZERS).empty()) {
    print_row("sanitizers", TESSERA_SANITIZERS);
  }

  fmt::print("\n{}\n", bold("CPU"));
  print_row("model", found.model);
  print_row("features", features_that_matter(found));
  print_row("ISAs", fmt::format("{}; {} is used", fmt::join(cpu.isas, ", "), cpu.selected_isa));
  print_row("threads", std::to_string(cpu.threads));
  print_row("L2 cache", cpu.l2_bytes > 0 ? bytes_text(static_cast<double>(cpu.l2_bytes)) + " a core" : "unknown");
  if (measure) {
    print_row("FMA peak", fmt::format("{:.1f} GFLOP/s a thread, float32", measure_peak_flops() / 1e9));
  }

  fmt::print("\n{}\n", bold("Devices"));
  print_row("cpu", "available");
  print_cuda(measure);

  fmt::print("\n{}\n", bold("Ranks"));
  print_row("local", "available");
  print_row("mpi", mpi_text());

  fmt::print("\n{}\n", bold("Impls, in the order in which a plan tries them"));
  for (const ImplInfo& info : implementations()) {
    print_row(info.name.c_str(), info.available ? fmt::format("{}  {}", green("available"), info.summary)
                                                : fmt::format("{}  {}", red("not available"), info.reason));
  }
  return 0;
}

}  // namespace

Command add_info(::CLI::App& root) {
  ::CLI::App* app = root.add_subcommand("info", "What this build and this machine have");
  auto measure = std::make_shared<bool>(false);
  app->add_flag("--peak", *measure, "measure the FMA peak, and the matrix rate of GPUs, too");
  auto support = std::make_shared<std::string>();
  add_word(*app, "--support", "print which Impl takes which feature instead, as the page docs/support.md or as JSON",
           {"markdown", "json"}, [support](const std::string& word) { *support = word; });
  return {app, [measure, support] {
            if (support->empty()) {
              return print_info(*measure);
            }
            fmt::print("{}", *support == "json" ? support_json() : support_markdown());
            return 0;
          }};
}

}  // namespace tessera::cli
