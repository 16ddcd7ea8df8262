#include "cli/bench_report.h"

#include <fmt/format.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "cli/flag_values.h"
#include "cli/terminal.h"
#include "cuda/device.h"
#include "cuda/memory.h"

namespace tessera::cli {

namespace {

double rate(const Measurement& one) { return one.facts.flops_of_pairs / one.median(); }

// Bytes a second of a forward pass that reads Q and the keys in use and writes O, each once.
double memory_rate(const Problem& problem, const Measurement& one) {
  double elements = static_cast<double>(problem.total_q() * problem.heads_q);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    elements += static_cast<double>(problem.sequence(b).keys * problem.heads_kv);
  }
  return elements * static_cast<double>((problem.dim_qk + problem.dim_v) * dtype_bytes(problem.dtype)) / one.median();
}

std::string peak_text(const Peak& peak) {
  if (!peak.cuda()) {
    return fmt::format("FMA peak {:.1f} GFLOP/s a thread ({}), measured in this run", peak.flops_per_second / 1e9,
                       peak.name);
  }
  const std::string copies =
      peak.copy_bytes_per_second > 0 ? fmt::format("copy rate {:.2f} TB/s, ", peak.copy_bytes_per_second / 1e12) : "";
  return fmt::format("{}matrix rate {:.0f} TFLOP/s ({}, {}), measured in this run", copies,
                     peak.flops_per_second / 1e12, device_text(peak.device), peak.name);
}

std::string speed_up(const MeasuredPoint& point, const std::vector<std::string>& impls) {
  const Measurement* first = point.of(impls.front());
  const Measurement* last = point.of(impls.back());
  return first != nullptr && last != nullptr ? bold(fmt::format("{:.2f}x", first->median() / last->median())) : "-";
}

// A group of columns, one for each Impl.
struct Column {
  std::string title;
  std::function<std::string(const Problem&, const Measurement&)> text;
};

std::vector<Column> columns(const Peak& peak, Pass pass) {
  std::vector<Column> all;
  const auto add = [&all](const char* title, const auto& text) {
    all.push_back({title, [text](const Problem&, const Measurement& one) { return text(one); }});
  };
  add("time", [](const Measurement& one) { return time_text(one.median()); });
  if (peak.cuda()) {
    add("TFLOP/s", [](const Measurement& one) { return fmt::format("{:.1f}", rate(one) / 1e12); });
  }
  if (peak.copy_bytes_per_second > 0 && pass == Pass::forward) {
    all.push_back({"GB/s", [](const Problem& problem, const Measurement& one) {
                     return fmt::format("{:.0f}", memory_rate(problem, one) / 1e9);
                   }});
    all.push_back({"share of copy rate", [&peak](const Problem& problem, const Measurement& one) {
                     return fmt::format("{:.0f} %", 100 * memory_rate(problem, one) / peak.copy_bytes_per_second);
                   }});
  }
  add("extra memory",
      [](const Measurement& one) { return bytes_text(static_cast<double>(one.facts.workspace_bytes)); });
  add(peak.cuda() ? "share of matrix rate" : "share of peak",
      [&peak](const Measurement& one) { return fmt::format("{:.0f} %", 100 * peak.share(one)); });
  add("error", [](const Measurement& one) { return error_text(one.error); });
  return all;
}

// The names of the Impls under those of the columns; of one Impl the columns alone.
Table header_of(const std::vector<Column>& columns, const std::vector<std::string>& impls) {
  const bool compared = impls.size() > 1;
  std::vector<std::string> header{"seq"};
  std::vector<std::size_t> firsts;
  for (const Column& column : columns) {
    firsts.push_back(header.size());
    if (!compared) {
      header.push_back(column.title);
      continue;
    }
    header.insert(header.end(), impls.begin(), impls.end());
    if (&column == &columns.front()) {
      header.emplace_back("speed-up");
    }
  }
  firsts.push_back(header.size());
  Table table(header);
  for (std::size_t n = 0; compared && n < columns.size(); ++n) {
    table.group(columns[n].title, firsts[n], firsts[n + 1] - 1);
  }
  return table;
}

// Each column of each Impl; behind the time the speed-up of the last over the first.
std::string table_of(const BenchReport& report, Pass pass) {
  const bool compared = report.impls.size() > 1;
  const std::vector<Column> all = columns(report.peak, pass);
  Table table = header_of(all, report.impls);
  for (const MeasuredPoint& point : report.points) {
    if (point.pass != pass) {
      continue;
    }
    std::vector<std::string> row{lengths_text(point.problem)};
    for (const Column& column : all) {
      for (const Measurement& one : point.measurements) {
        row.push_back(one.measured() ? column.text(point.problem, one) : "-");
      }
      if (&column == &all.front() && compared) {
        row.push_back(speed_up(point, report.impls));
      }
    }
    table.add(std::move(row));
  }
  return table.text();
}

void print_notes(const BenchReport& report) {
  const auto each = [&](const auto& visit) {
    for (const MeasuredPoint& point : report.points) {
      for (const Measurement& one : point.measurements) {
        visit(point, one);
      }
    }
  };
  const Peak& peak = report.peak;
  fmt::print(
      "time: median of {} runs or more, Impls in turn{}; extra memory: workspace beside inputs and outputs;\n"
      "share of {}: FLOPs of the pairs that attend, per second, over {}\n",
      kFewestRuns, peak.cuda() ? ", by events on the device" : "", peak.cuda() ? "matrix rate" : "peak",
      peak.cuda() ? "those of products of matrices that lie in shared memory" : "the FMA peak of as many threads");
  bool sampled = false;
  each([&](const MeasuredPoint&, const Measurement& one) { sampled = sampled || (one.error && !one.error->whole); });
  if (report.errors) {
    fmt::print(
        "error: the largest ||x - ref|| / ||ref|| of the outputs, against the oracle in double precision, in one "
        "sequence\nand the heads of one key head{}\n",
        sampled ? "; *: of 64 rows spread over it, O and LSE or dQ alone" : "");
  }
  each([](const MeasuredPoint& point, const Measurement& one) {
    if (!one.measured()) {
      fmt::print("{} skipped at {}, {}: {}\n", one.impl, lengths_text(point.problem), pass_name(point.pass),
                 one.skipped);
    }
  });
}

nlohmann::ordered_json json_of(const Peak& peak) {
  if (!peak.cuda()) {
    return {{"isa", peak.name}, {"flops_per_second_per_thread", peak.flops_per_second}};
  }
  nlohmann::ordered_json json{
      {"device", device_text(peak.device)}, {"name", peak.name}, {"matrix_flops_per_second", peak.flops_per_second}};
  if (peak.copy_bytes_per_second > 0) {
    json["copy_bytes_per_second"] = peak.copy_bytes_per_second;
  }
  return json;
}

nlohmann::ordered_json json_of(const MeasuredPoint& point, const Measurement& one, const Peak& peak) {
  nlohmann::ordered_json entry{{"impl", one.impl}};
  if (!one.measured()) {
    entry["skipped"] = one.skipped;
    return entry;
  }
  if (!peak.cuda()) {
    entry["isa"] = one.facts.isa;
    entry["threads"] = one.facts.threads;
  }
  entry["median_seconds"] = one.median();
  entry["fastest_seconds"] = one.seconds.front();
  entry["runs"] = one.seconds.size();
  entry["workspace_bytes"] = one.facts.workspace_bytes;
  entry["flops_of_pairs"] = one.facts.flops_of_pairs;
  entry["flops_in_tiles"] = one.facts.flops;
  entry["flops_per_second"] = rate(one);
  if (peak.copy_bytes_per_second > 0 && point.pass == Pass::forward) {
    entry["bytes_per_second"] = memory_rate(point.problem, one);
  }
  entry[peak.cuda() ? "share_of_matrix_rate" : "share_of_peak"] = peak.share(one);
  if (one.error) {
    entry["error"] = {{"value", one.error->error},
                      {"output", one.error->output},
                      {"rows", one.error->rows},
                      {"all_rows", one.error->whole}};
  }
  return entry;
}

const PlanFacts* any_facts(const std::vector<MeasuredPoint>& points) {
  for (const MeasuredPoint& point : points) {
    for (const Measurement& one : point.measurements) {
      if (one.measured()) {
        return &one.facts;
      }
    }
  }
  return nullptr;
}

}  // namespace

std::string Peak::what() const { return cuda() ? "matrix rate" : "FMA peak"; }

double Peak::share(const Measurement& one) const {
  return rate(one) / (flops_per_second * (cuda() ? 1 : one.facts.threads));
}

Peak measure_peak(const PlanOptions& plan, bool with_memory) {
  Peak peak;
  peak.device = plan.device;
  if (peak.cuda()) {
    peak.name = internal::cuda_device(plan.device.index).name;
    peak.flops_per_second = internal::measure_matrix_rate(plan.device.index);
    peak.copy_bytes_per_second = with_memory ? internal::measure_copy_rate(plan.device.index) : 0;
  } else {
    peak.name = plan.isa.empty() ? cpu_info().selected_isa : plan.isa;
    peak.flops_per_second = measure_peak_flops(peak.name);
  }
  return peak;
}

std::string lengths_text(const Problem& problem) {
  return problem.seq_q == problem.seq_k ? std::to_string(problem.seq_k)
                                        : fmt::format("{}x{}", problem.seq_q, problem.seq_k);
}

bool BenchReport::measured() const { return any_facts(points) != nullptr; }

std::string BenchReport::title() const {
  const Problem& problem = points.front().problem;
  const PlanFacts* facts = any_facts(points);
  const std::string mask = problem.mask.describe();
  return fmt::format("{}, {} {}, {} heads{}, dim {}{}{}{}", dtype_name(problem.dtype),
                     problem.ragged() ? "ragged" : "batch", problem.batch, problem.heads_q,
                     problem.heads_kv == problem.heads_q ? "" : fmt::format(" over {} key heads", problem.heads_kv),
                     problem.dim_qk == problem.dim_v ? std::to_string(problem.dim_qk)
                                                     : fmt::format("{} and {}", problem.dim_qk, problem.dim_v),
                     mask == "none" ? "" : ", " + mask,
                     peak.cuda()        ? ", " + peak.name
                     : facts == nullptr ? ""
                                        : fmt::format(", {} thread{}", facts->threads, facts->threads == 1 ? "" : "s"),
                     impls.size() == 1 ? ", " + impls.front() : "");
}

void BenchReport::print() const {
  fmt::print("{}\n{}\n", bold(title()), peak_text(peak));
  for (const Pass pass : passes) {
    fmt::print("\n{}\n{}", bold(std::string(pass_name(pass))), table_of(*this, pass));
  }
  fmt::print("\n");
  print_notes(*this);
}

nlohmann::ordered_json BenchReport::to_json() const {
  nlohmann::ordered_json document{{"peak", json_of(peak)}, {"points", nlohmann::ordered_json::array()}};
  for (const MeasuredPoint& point : points) {
    nlohmann::ordered_json results = nlohmann::ordered_json::array();
    for (const Measurement& one : point.measurements) {
      results.push_back(json_of(point, one, peak));
    }
    document["points"].push_back({{"pass", pass_name(point.pass)},
                                  {"seq_q", point.problem.seq_q},
                                  {"seq_k", point.problem.seq_k},
                                  {"problem", point.problem.describe()},
                                  {"results", results}});
  }
  return document;
}

}  // namespace tessera::cli
