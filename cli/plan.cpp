// tessera plan: how long a pass over many ranks would take, and what limits it.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/figures_file.h"
#include "cli/file_io.h"
#include "cli/flag_values.h"
#include "cli/problem_flags.h"
#include "cli/rank_rates.h"
#include "cli/terminal.h"
#include "core/fail.h"
#include "tessera/distributed.h"

namespace tessera::cli {

namespace {

using Kind = SequenceLayout::Kind;

struct PlanFlags {
  ProblemFlags problem;
  int gpus = 8;
  int nodes = 1;
  ClusterRates rates;        // of the forward pass, in FLOP/s and bytes per second
  double backward_rate = 0;  // FLOP/s; 0: as forward
  std::optional<RankRates> measured;
  std::string measured_path;
  std::string json;
};

struct Row {
  Pass pass;
  RingSchedule schedule;
  Kind layout;
  Prediction prediction;
};

// What `tessera bench --distributed --json` wrote.
RankRates read_measured(const std::string& path) {
  const auto fail = [&](const std::string& why) { throw Error(ErrorCode::io, "--measured: " + path + ": " + why); };
  RankRates rates;
  try {
    const std::vector<std::byte> bytes = read_file(path);
    const auto document = nlohmann::json::parse(reinterpret_cast<const char*>(bytes.data()),
                                                reinterpret_cast<const char*>(bytes.data()) + bytes.size());
    rates = RankRates::from_json(document.at("rates"));
  } catch (const nlohmann::json::parse_error& error) {
    fail(fmt::format("not JSON: error at its byte {}", error.byte));
  } catch (const nlohmann::json::exception& error) {
    fail(fmt::format("not what bench --distributed --json writes: {}", error.what()));
  }
  if (rates.forward.empty() && rates.backward.empty()) {
    fail("no kernels were timed; accepted: what bench writes without --no-baseline");
  }
  if (!(rates.link_bytes_per_second > 0)) {
    fail("no link was timed; accepted: what two or more ranks write");
  }
  return rates;
}

std::vector<Row> predict_all(const Problem& problem, const PlanFlags& flags) {
  std::vector<Row> rows;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    ClusterRates rates = flags.rates;
    if (flags.measured) {
      rates = flags.measured->of(pass);
      if (rates.kernels.empty()) {
        continue;
      }
    } else if (pass == Pass::backward && flags.backward_rate > 0) {
      rates.flops_per_second = flags.backward_rate;
    }
    for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring}) {
      if ((schedule == RingSchedule::double_ring && flags.nodes == 1) ||
          (schedule == RingSchedule::burst && pass == Pass::forward)) {  // the forward pass of ring
        continue;
      }
      for (const Kind layout : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
        DistributedOptions options;
        options.schedule = schedule;
        options.layout = layout;
        options.links.ranks_per_node = flags.gpus / flags.nodes;
        rows.push_back({pass, schedule, layout, predict(problem, pass, flags.gpus, options, rates)});
      }
    }
  }
  return rows;
}

bool is_fastest(const Row& row, const std::vector<Row>& rows) {
  return std::none_of(rows.begin(), rows.end(), [&](const Row& other) {
    return other.pass == row.pass && other.prediction.seconds < row.prediction.seconds;
  });
}

void print_rows(const std::vector<Row>& rows) {
  Table table({"pass", "schedule", "layout", "time", "compute", "node link", "network", "sent by a rank", "efficiency",
               "binds"});
  for (const Row& row : rows) {
    const Prediction& one = row.prediction;
    const std::string time = time_text(one.seconds);
    table.add({std::string(pass_name(row.pass)), std::string(schedule_name(row.schedule)),
               std::string(layout_name(row.layout)), is_fastest(row, rows) ? bold(time) : time,
               time_text(one.compute_seconds), time_text(one.node_seconds), time_text(one.network_seconds),
               bytes_text(static_cast<double>(one.bytes_sent)), fmt::format("{:.0f} %", 100 * one.efficiency()),
               one.binding});
  }
  fmt::print("\n{}\n", table.text());
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    if (std::none_of(rows.begin(), rows.end(), [&](const Row& row) { return row.pass == pass; })) {
      continue;
    }
    const auto best = std::min_element(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
      return std::pair(a.pass != pass, a.prediction.seconds) < std::pair(b.pass != pass, b.prediction.seconds);
    });
    fmt::print("{}: {} with the {} layout, {}; {} binds\n", pass_name(pass), schedule_name(best->schedule),
               layout_name(best->layout), time_text(best->prediction.seconds), best->prediction.binding);
  }
}

nlohmann::ordered_json json_of(const Problem& problem, const PlanFlags& flags, const std::vector<Row>& rows) {
  nlohmann::ordered_json document{{"problem", problem.describe()},
                                  {"ranks", flags.gpus},
                                  {"nodes", flags.nodes},
                                  {"predictions", nlohmann::ordered_json::array()}};
  for (const Row& row : rows) {
    const Prediction& one = row.prediction;
    document["predictions"].push_back({{"pass", pass_name(row.pass)},
                                       {"schedule", schedule_name(row.schedule)},
                                       {"layout", layout_name(row.layout)},
                                       {"seconds", one.seconds},
                                       {"compute_seconds", one.compute_seconds},
                                       {"node_link_seconds", one.node_seconds},
                                       {"network_seconds", one.network_seconds},
                                       {"bytes_sent", one.bytes_sent},
                                       {"efficiency", one.efficiency()},
                                       {"binds", one.binding}});
  }
  return document;
}

int plan(PlanFlags flags) {
  const Problem problem = flags.problem.problem();
  if (flags.gpus % flags.nodes != 0) {
    internal::fail_argument("--nodes", std::int64_t{flags.nodes}, "divisors of --gpus, " + std::to_string(flags.gpus));
  }
  check_figures_file(flags.json);
  if (!flags.measured_path.empty()) {
    flags.measured = read_measured(flags.measured_path);
    flags.rates = flags.measured->of(flags.measured->forward.empty() ? Pass::backward : Pass::forward);
  }
  if (!(flags.rates.flops_per_second > 0)) {
    internal::fail_argument("--rate", "absent", "the TFLOP/s of a rank's kernel, or --measured FILE");
  }
  fmt::print("{}\n{} ranks in {} node{}: {:.3g} TFLOP/s each, {:.4g} GB/s in a node, {:.4g} GB/s between nodes\n",
             bold(problem.describe()), flags.gpus, flags.nodes, flags.nodes == 1 ? "" : "s",
             flags.rates.flops_per_second / 1e12, flags.rates.node_bytes_per_second / 1e9,
             flags.rates.network_bytes_per_second / 1e9);
  const std::vector<Row> rows = predict_all(problem, flags);
  print_rows(rows);
  report_figures(flags.json, json_of(problem, flags, rows));
  return 0;
}

}  // namespace

Command add_plan(::CLI::App& root) {
  ::CLI::App* app = root.add_subcommand("plan", "Predict the time of a pass over many ranks, and what limits it");
  auto flags = std::make_shared<PlanFlags>();
  flags->problem.seq = 1 << 17;
  flags->problem.heads = 32;
  flags->problem.dim = 128;
  flags->rates.node_bytes_per_second = 400e9;
  flags->rates.network_bytes_per_second = 50e9;
  flags->rates.message_seconds = 10e-6;
  flags->problem.add_shape(*app);
  flags->problem.add_options(*app);
  const auto rate = [app](const char* name, const std::string& description, double scale, double& target) {
    add_value(*app, name, "X", description, "a positive number", [scale, &target](const std::string& text) {
      const double number = to_number(text).value_or(0);
      target = number * scale;
      return number > 0;
    });
  };
  constexpr int kMostRanks = 4096;
  add_integer(*app, "--gpus", "ranks [8]", 1, kMostRanks, [flags](auto n) { flags->gpus = static_cast<int>(n); });
  add_integer(*app, "--nodes", "nodes that they are in [1]", 1, kMostRanks,
              [flags](auto n) { flags->nodes = static_cast<int>(n); });
  rate("--nvlink", "GB/s that a rank sends inside its node [400]", 1e9, flags->rates.node_bytes_per_second);
  rate("--network", "GB/s that a rank sends to another node [50]", 1e9, flags->rates.network_bytes_per_second);
  add_number(
      *app, "--latency", "microseconds that every message takes besides [10]",
      [flags](double x) { flags->rates.message_seconds = 1e-6 * x; }, 0);
  rate("--rate", "TFLOP/s of a rank's kernel, forward", 1e12, flags->rates.flops_per_second);
  rate("--backward-rate", "the same of the backward pass [--rate]", 1e12, flags->backward_rate);
  app->add_option("--measured", flags->measured_path, "take the rates from what bench --distributed --json wrote")
      ->type_name("FILE");
  app->add_option("--json", flags->json, "write all figures to this file")->type_name("FILE");
  app->footer(
      "Example:\n"
      "  tessera plan --gpus 64 --nodes 8 --nvlink 400 --network 50 --seq 1M --mask causal --dtype bfloat16 --rate "
      "600");
  return {app, [flags] { return plan(*flags); }};
}

}  // namespace tessera::cli
