// tessera warm: the kernels of problems, compiled before they are needed.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cli/commands.h"
#include "cli/file_io.h"
#include "cli/flag_values.h"
#include "cli/problem_flags.h"
#include "cli/terminal.h"
#include "core/fail.h"
#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

struct WarmFlags {
  std::string problems;
  PlanOptions plan;
};

// One problem a line, in the flags of explain; empty lines and those that begin with # are none.
std::vector<Problem> read_problems(const WarmFlags& flags) {
  const std::vector<std::byte> bytes = read_file(flags.problems);
  std::istringstream lines(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  std::vector<Problem> problems;
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') {
      continue;
    }
    const auto fail = [&](const std::string& why) {
      throw Error(ErrorCode::invalid_argument, fmt::format("--problems: {}:{}: {}", flags.problems, number, why));
    };
    ::CLI::App app;
    ProblemFlags problem;
    problem.default_dtype = DType::bfloat16;
    problem.add_shape(app);
    problem.add_options(app);
    try {
      app.parse(line.substr(first));
      problems.push_back(problem.problem());
    } catch (const ::CLI::ParseError& error) {
      fail(describe(app, error));
    } catch (const Error& error) {
      fail(error.what());
    }
  }
  return problems;
}

struct WarmRow {
  const Problem* problem = nullptr;
  Pass pass = Pass::forward;
  std::string impl, kernels;
  double seconds = 0;
  std::exception_ptr failure;
};

// Making a plan compiles its kernels. What is not taken by any Impl is said, and the others are still warmed.
void warm_row(WarmRow& row, const PlanOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  try {
    const Plan plan = Plan::make(*row.problem, row.pass, options);
    row.impl = plan.facts().impl;
    for (const KernelFacts& kernel : plan.facts().kernels) {
      row.kernels += (row.kernels.empty() ? "" : " ") + kernel.name;
    }
  } catch (const Error& error) {
    row.impl = "none";
    row.kernels = error.what();
    row.failure = error.code() == ErrorCode::unsupported ? nullptr : std::current_exception();
  }
  row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The rows at the same time, as many as there are cores.
void warm_rows(std::vector<WarmRow>& rows, const PlanOptions& options) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t n = next++; n < rows.size(); n = next++) {
      warm_row(rows[n], options);
    }
  };
  std::vector<std::thread> threads(
      std::min<std::size_t>(rows.size(), std::max(1U, std::thread::hardware_concurrency())));
  for (std::thread& thread : threads) {
    thread = std::thread(work);
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

int warm(const WarmFlags& flags) {
  const std::vector<Problem> problems = read_problems(flags);
  if (flags.plan.device.kind != DeviceKind::cuda) {
    internal::fail_argument("--device", "cpu", "cuda, cuda:0, cuda:1, ..");
  }
  internal::cuda_device(flags.plan.device.index);
  std::vector<WarmRow> rows;
  for (const Problem& problem : problems) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      rows.push_back({&problem, pass, {}, {}, 0, nullptr});
    }
  }
  warm_rows(rows, flags.plan);
  Table table({"problem", "pass", "Impl", "kernels", "time"});
  int refused = 0;
  for (const WarmRow& row : rows) {
    if (row.failure) {
      std::rethrow_exception(row.failure);
    }
    refused += row.impl == "none" ? 1 : 0;
    table.add(
        {row.problem->describe(), std::string(pass_name(row.pass)), row.impl, row.kernels, time_text(row.seconds)});
  }
  fmt::print("{}\n", table.text());
  return refused == 0 ? 0 : 1;
}

}  // namespace

Command add_warm(::CLI::App& root) {
  ::CLI::App* app = root.add_subcommand("warm", "Compile the GPU kernels of problems into the cache");
  auto flags = std::make_shared<WarmFlags>();
  flags->plan.device = {DeviceKind::cuda, 0};
  app->add_option("--problems", flags->problems, "file with the flags of one problem on each line")->required();
  add_plan_flags(*app, flags->plan);
  app->get_option("--device")->description("whose kernels [cuda]");
  app->footer(
      "The cache is in TESSERA_CACHE_DIR, else in tessera under XDG_CACHE_HOME or ~/.cache.\n"
      "Example of a line: --seq 4096 --heads 16 --dim 128 --mask causal --dropout 0.1");
  return {app, [flags] { return warm(*flags); }};
}

}  // namespace tessera::cli
