// tessera verify: an Impl against the oracle, each error beside its bound.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "cli/commands.h"
#include "cli/compare.h"
#include "cli/distributed.h"
#include "cli/flag_values.h"
#include "cli/plan_text.h"
#include "cli/problem_flags.h"
#include "cli/random_problem.h"
#include "cli/terminal.h"
#include "core/fail.h"
#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

struct VerifyFlags {
  const ::CLI::App* app = nullptr;
  ProblemFlags problem;
  CheckOptions options;
  RankFlags ranks;
  std::int64_t random = 0;
  std::int64_t first = 0;
  std::optional<ProblemSpace> space;  // nullopt: what the device computes
};

std::string judgement(const OutputCheck& check) {
  if (!check.mismatch.empty()) {
    return red("FAIL") + "  " + check.mismatch;
  }
  if (!check.ok()) {
    return red("FAIL");
  }
  return green("ok") + (check.by_typical_size ? "  relative to the typical size: the values cancel" : "");
}

}  // namespace

void print_checks(const CheckResult& result) {
  Table table({"output", "error", "allowed", ""});
  table.align_left(3);
  for (const OutputCheck& check : result.outputs) {
    table.add(
        {check.output, fmt::format("{:.2e}", check.error), fmt::format("{:.2e}", check.allowed), judgement(check)});
  }
  fmt::print("{}", table.text());
}

namespace {

int verify_one(const VerifyFlags& flags) {
  const Problem problem = flags.problem.problem();
  const CheckResult result = check_problem(problem, flags.options);
  fmt::print("{}\n{} against the oracle in double precision{}\n\n", bold(problem.describe()),
             plan_text(result.forward, flags.options.plan.device),
             result.has_standard ? "" : "; the standard Impl does not take this problem");
  print_checks(result);
  fmt::print("\nerror = ||x - ref|| / ||ref||; allowed: the numerics contract\n{}\n",
             result.ok() ? green("passed") : red("FAILED"));
  return result.ok() ? 0 : 1;
}

// What a random run has seen.
struct Tally {
  std::int64_t passed = 0;
  std::int64_t failed = 0;
  std::int64_t refused = 0;
  std::map<std::string, std::int64_t> features;
  std::map<std::string, std::int64_t> refusals;
  struct Worst {
    double share = -1;  // of what is allowed
    double error = 0;
    double allowed = 0;
    std::int64_t index = 0;
  };
  std::map<std::string, Worst> worst;

  void add(const CheckResult& result, std::int64_t index) {
    ++(result.ok() ? passed : failed);
    for (const OutputCheck& check : result.outputs) {
      Worst& output = worst[check.output];
      const double share =
          check.mismatch.empty() ? check.error / check.allowed : std::numeric_limits<double>::infinity();
      if (share > output.share) {
        output = {share, check.error, check.allowed, index};
      }
    }
  }
};

void print_failure(const RandomProblem& random, const CheckResult& result, const VerifyFlags& flags,
                   std::int64_t index) {
  fmt::print("{} problem {}: {}\n", red("FAIL"), index, random.problem.describe());
  print_checks(result);
  const PlanOptions& plan = flags.options.plan;
  fmt::print("again: tessera verify {}{}{}{}{}{}{}\n\n", to_flags(random.problem, random.tensors),
             plan.device == Device{} ? "" : " --device " + device_text(plan.device),
             plan.deterministic ? "" : " --nondeterministic",
             plan.float32_products == Float32Products::exact ? "" : " --float32-products tf32",
             plan.impl.empty() ? "" : " --impl " + plan.impl, plan.isa.empty() ? "" : " --isa " + plan.isa,
             plan.threads == 0 ? "" : fmt::format(" --threads {}", plan.threads));
}

void print_tally(const Tally& tally, std::int64_t problems) {
  std::string features;
  for (const auto& [name, count] : tally.features) {
    features += fmt::format("{}{} {}", features.empty() ? "" : ", ", name, count);
  }
  fmt::print("covered: {}\n\n", features);
  Table table({"output", "worst error", "allowed", "share", "problem"});
  for (const char* name : {"O", "LSE", "dQ", "dK", "dV", "dbias", "dsinks"}) {
    const auto found = tally.worst.find(name);
    if (found == tally.worst.end()) {
      continue;
    }
    const Tally::Worst& worst = found->second;
    table.add({name, fmt::format("{:.2e}", worst.error), fmt::format("{:.2e}", worst.allowed),
               fmt::format("{:.0f} %", 100 * worst.share), std::to_string(worst.index)});
  }
  fmt::print("{}\n", table.text());
  for (const auto& [reason, count] : tally.refusals) {
    fmt::print("refused {} times: {}\n", count, reason);
  }
  fmt::print("{} of {} passed{}{}\n", tally.passed, problems,
             tally.refused > 0 ? fmt::format(", {} refused", tally.refused) : "",
             tally.failed > 0 ? ", " + red(fmt::format("{} FAILED", tally.failed)) : "");
}

// The part of Plan::make's message that says why, without the problem; on a GPU that of its Impl, which comes first.
std::string reason_of(const Error& error, const Device& device) {
  const std::string text = error.what();
  const std::size_t found = text.find("); ");
  const std::string reasons = found == std::string::npos ? text : text.substr(found + 3);
  return device.kind == DeviceKind::cuda ? reasons.substr(0, reasons.find("; ")) : reasons;
}

int verify_random(const VerifyFlags& flags) {
  const std::uint64_t seed = flags.options.tensors.seed;
  const bool cuda = flags.options.plan.device.kind == DeviceKind::cuda;
  const ProblemSpace space = flags.space.value_or(cuda ? ProblemSpace::sm90 : ProblemSpace::all);
  fmt::print("{}\n",
             bold(fmt::format("{} random problems{}, seed {}, from number {}", flags.random,
                              space == ProblemSpace::sm90 ? " of those that sm90 takes" : "", seed, flags.first)));
  std::fflush(stdout);
  Tally tally;
  Progress progress(flags.random);
  for (std::int64_t n = 0; n < flags.random; ++n) {
    const std::int64_t index = flags.first + n;
    progress.step(tally.failed > 0 ? fmt::format("{} failed", tally.failed) : "", n);
    const RandomProblem random = random_problem(seed, static_cast<std::uint64_t>(index), space);
    CheckOptions options = flags.options;
    options.tensors = random.tensors;
    try {
      const CheckResult result = check_problem(random.problem, options);
      tally.add(result, index);
      if (!result.ok()) {
        progress.clear();
        print_failure(random, result, flags, index);
      }
    } catch (const Error& error) {
      if (error.code() != ErrorCode::unsupported) {
        throw;
      }
      ++tally.refused;
      ++tally.refusals[reason_of(error, options.plan.device)];
      continue;
    }
    for (const std::string& feature : features_of(random)) {
      ++tally.features[feature];
    }
  }
  progress.clear();
  print_tally(tally, flags.random);
  return tally.failed > 0 || tally.passed == 0 ? 1 : 0;
}

int verify(const VerifyFlags& flags) {
  if (flags.ranks.schedule && flags.random > 0) {
    internal::fail_argument("--random", flags.random, "absent beside --distributed");
  }
  if (flags.random > 0) {
    refuse_given(*flags.app, problem_flag_names(*flags.app), "absent beside --random, which draws problems");
  } else {
    refuse_given(*flags.app, {"--first", "--space"}, "with --random");
  }
  flags.ranks.check(*flags.app, flags.options.plan.device);
  if (flags.options.plan.device.kind == DeviceKind::cuda && !flags.ranks.schedule) {
    internal::cuda_device(flags.options.plan.device.index);  // one error, where every problem would be refused
  }
  return flags.ranks.schedule ? verify_over_ranks(flags.problem.problem(), flags.options, flags.ranks)
         : flags.random > 0   ? verify_random(flags)
                              : verify_one(flags);
}

}  // namespace

Command add_verify(::CLI::App& root) {
  ::CLI::App* app = root.add_subcommand("verify", "Compare an Impl with the oracle, each error beside its bound");
  auto flags = std::make_shared<VerifyFlags>();
  flags->app = app;
  flags->problem.seq = 256;
  flags->problem.heads = 2;
  flags->problem.add_shape(*app);
  flags->problem.add_options(*app);
  add_tensor_flags(*app, flags->options.tensors);
  add_plan_flags(*app, flags->options.plan, &flags->problem);
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  add_integer(*app, "--random", "check this many random problems over the whole feature space instead", 1, kMost,
              [flags](auto n) { flags->random = n; });
  add_integer(*app, "--first", "with --random: number of the first problem [0]", 0, kMost,
              [flags](auto n) { flags->first = n; });
  add_word(*app, "--space", "with --random: what they are drawn from [all; on cuda sm90, what that Impl takes]",
           {"all", "sm90"},
           [flags](const std::string& word) { flags->space = word == "all" ? ProblemSpace::all : ProblemSpace::sm90; });
  app->add_flag_callback("--forward-only", [flags] { flags->options.backward = false; }, "leave the backward pass out");
  app->footer(
      "Exit status: 0 all within bounds, 1 a failure, 2 bad flags.\n"
      "Examples:\n"
      "  tessera verify --seq-q 100 --seq-k 333 --mask causal --heads 6 --kv-heads 2 --alibi\n"
      "  tessera verify --random 500 --seed 7\n"
      "  tessera verify --device cuda --random 500 --seed 7\n"
      "  mpirun -n 4 tessera verify --distributed burst --mask causal");
  flags->ranks.add(*app);
  return {app, [flags] { return verify(*flags); }};
}

}  // namespace tessera::cli
