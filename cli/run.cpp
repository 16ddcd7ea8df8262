// tessera run: attention over the tensors of a safetensors file.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>

#include "cli/commands.h"
#include "cli/device_tensors.h"
#include "cli/file_io.h"
#include "cli/flag_values.h"
#include "cli/plan_text.h"
#include "cli/problem_flags.h"
#include "cli/run_plan.h"
#include "cli/safetensors.h"
#include "cli/terminal.h"
#include "tessera/error.h"
#include "tessera/version.h"

namespace tessera::cli {

namespace {

struct RunFlags {
  ProblemFlags problem;
  PlanOptions plan;
  std::string input;
  std::string output;
};

constexpr std::array kInputNames{"q", "k", "v", "bias", "alibi_slopes", "sinks", "dout", "dlse", "out", "lse"};
constexpr std::array<std::pair<std::string_view, DType>, 4> kDTypes{
    {{"F32", DType::float32}, {"BF16", DType::bfloat16}, {"F16", DType::float16}, {"F64", DType::float64}}};

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorCode::io, message); }

// A copy, since the data in the file lie at any alignment.
HostTensor load(const SafeTensor& tensor) {
  const auto* dtype =
      std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& entry) { return entry.first == tensor.dtype; });
  if (dtype == kDTypes.end()) {
    fail(fmt::format("tensor {}: dtype {}; accepted: F32, BF16, F16, F64", tensor.name, tensor.dtype));
  }
  if (tensor.shape.empty() || tensor.shape.size() > kMaxRank) {
    fail(fmt::format("tensor {}: {} dimensions; accepted: 1 to {}", tensor.name, tensor.shape.size(), kMaxRank));
  }
  HostTensor result(dtype->second, tensor.shape);
  if (!tensor.data.empty()) {
    std::memcpy(result.view().data, tensor.data.data(), tensor.data.size());
  }
  return result;
}

class Inputs {
 public:
  explicit Inputs(const SafeTensors& file) {
    for (const SafeTensor& tensor : file.tensors) {
      if (std::find(kInputNames.begin(), kInputNames.end(), tensor.name) == kInputNames.end()) {
        fail(fmt::format("tensor {}: unknown; accepted: {}", tensor.name, fmt::join(kInputNames, ", ")));
      }
      tensors_.emplace(tensor.name, load(tensor));
    }
    for (const char* name : {"q", "k", "v"}) {
      if (!has(name)) {
        fail(fmt::format("no tensor {}; accepted: files with q, k and v", name));
      }
    }
    if (has("out") != has("lse")) {
      fail(fmt::format("tensor {} without {}; accepted: both, to differentiate without the forward pass, or neither",
                       has("out") ? "out" : "lse", has("out") ? "lse" : "out"));
    }
    for (const char* name : {"out", "dlse"}) {
      if (has(name) && !has("dout")) {
        fail(fmt::format("tensor {} without dout; accepted: {} with dout", name, name));
      }
    }
  }

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const std::map<std::string, HostTensor>& tensors() const { return tensors_; }
  // Absent when the file has none.
  ConstTensorView view(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? ConstTensorView{} : found->second.const_view();
  }

 private:
  std::map<std::string, HostTensor> tensors_;
};

// What the shapes say. Shapes that contradict each other are left to the library, which names them.
Problem problem_of_tensors(const Inputs& inputs, const ProblemFlags& flags) {
  const ConstTensorView q = inputs.view("q");
  const ConstTensorView k = inputs.view("k");
  const ConstTensorView v = inputs.view("v");
  const int rank = flags.ragged_given() ? 3 : 4;
  for (const auto& [name, view] : {std::pair{"q", &q}, std::pair{"k", &k}, std::pair{"v", &v}}) {
    if (view->rank != rank) {
      fail(fmt::format("tensor {}: {}; accepted: [batch, seq, heads, dim], or [total, heads, dim] with --lengths", name,
                       view->describe()));
    }
  }
  const auto heads = static_cast<std::size_t>(rank - 2);
  Problem problem;
  problem.dtype = q.dtype;
  problem.heads_q = q.shape[heads];
  problem.heads_kv = k.shape[heads];
  problem.dim_qk = q.shape[heads + 1];
  problem.dim_v = v.shape[heads + 1];
  if (flags.ragged_given()) {
    flags.make_ragged(problem);
  } else {
    problem.batch = q.shape[0];
    problem.seq_q = q.shape[1];
    problem.seq_k = k.shape[1];
  }
  problem.alibi = inputs.has("alibi_slopes");
  problem.sinks = inputs.has("sinks");
  if (inputs.has("bias")) {
    const ConstTensorView bias = inputs.view("bias");
    if (bias.rank != 4) {
      fail(fmt::format("tensor bias: {}; accepted: 4 dimensions, [batch or 1, heads or 1, seq_q or 1, seq_k or 1]",
                       bias.describe()));
    }
    problem.bias_shape = bias.shape;
    problem.bias_dtype = bias.dtype;
  }
  return problem;
}

// The results by name, in the order of the file.
using Outputs = std::deque<std::pair<std::string, HostTensor>>;

void print_done(const Plan& plan, const Device& device, double seconds) {
  const PlanFacts& facts = plan.facts();
  fmt::print("{:<9} {:>9}  {}, workspace {}\n", pass_name(plan.pass()), time_text(seconds), plan_text(facts, device),
             bytes_text(static_cast<double>(facts.workspace_bytes)));
}

// Runs plans one after another on one device, where the tensors stay in between.
class Runner {
 public:
  Runner(const Problem& problem, const PlanOptions& options) : problem_(problem), options_(options) {
    if (options.device.kind == DeviceKind::cuda) {
      copies_.emplace(options.device.index);
      stream_.emplace(options.device.index);
    }
  }

  // A tensor that a pass will read or write.
  void add(const HostTensor& tensor) {
    if (copies_) {
      copies_->add(tensor);
    }
  }
  template <class Tensors>
  void run(const Tensors& tensors) {
    const Pass pass = std::is_same_v<Tensors, ForwardTensors> ? Pass::forward : Pass::backward;
    const Plan plan = Plan::make(problem_, pass, options_);
    const PlanWorkspace workspace(plan, options_.device);
    double seconds = 0;
    if (copies_) {
      const Tensors moved = copies_->moved(tensors);
      seconds = stream_->seconds([&] { plan.run(moved, workspace.bytes(), stream_->handle()); });
      stream_->synchronize();
    } else {
      const auto start = std::chrono::steady_clock::now();
      plan.run(tensors, workspace.bytes());
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    print_done(plan, options_.device, seconds);
  }
  void fetch(const Outputs& outputs) const {
    for (const auto& [name, tensor] : outputs) {
      if (copies_) {
        copies_->download(tensor);
      }
    }
  }

 private:
  const Problem& problem_;
  const PlanOptions& options_;
  std::optional<DeviceTensors> copies_;
  std::optional<internal::DeviceStream> stream_;
};

Outputs compute(const Problem& problem, const Inputs& inputs, const PlanOptions& options) {
  Runner runner(problem, options);
  for (const auto& [name, tensor] : inputs.tensors()) {
    runner.add(tensor);
  }
  const DType statistics = problem.dtype == DType::float64 ? DType::float64 : DType::float32;
  const ScoreTensors score{inputs.view("bias"), inputs.view("alibi_slopes"), inputs.view("sinks")};
  Outputs outputs;
  const auto add_output = [&](const char* name, DType dtype, const std::vector<std::int64_t>& shape) {
    const HostTensor& tensor = outputs.emplace_back(name, HostTensor(dtype, shape)).second;
    runner.add(tensor);
    return tensor.view();
  };
  ConstTensorView out = inputs.view("out");
  ConstTensorView lse = inputs.view("lse");
  if (out.absent()) {
    ForwardTensors forward{inputs.view("q"), inputs.view("k"), inputs.view("v"), {}, {}, score};
    forward.out = add_output("out", problem.out_dtype(), token_shape(problem, true, problem.dim_v));
    forward.lse = add_output("lse", statistics, lse_shape(problem));
    runner.run(forward);
    out = forward.out;
    lse = forward.lse;
  }
  if (!inputs.has("dout")) {
    runner.fetch(outputs);
    return outputs;
  }
  BackwardTensors backward;
  backward.q = inputs.view("q");
  backward.k = inputs.view("k");
  backward.v = inputs.view("v");
  backward.out = out;
  backward.lse = lse;
  backward.dout = inputs.view("dout");
  backward.dlse = inputs.view("dlse");
  backward.score = score;
  backward.dq = add_output("dq", problem.out_dtype(), token_shape(problem, true, problem.dim_qk));
  backward.dk = add_output("dk", problem.out_dtype(), token_shape(problem, false, problem.dim_qk));
  backward.dv = add_output("dv", problem.out_dtype(), token_shape(problem, false, problem.dim_v));
  if (problem.bias_shape) {
    backward.dbias = add_output("dbias", statistics, {problem.bias_shape->begin(), problem.bias_shape->end()});
  }
  if (problem.sinks) {
    backward.dsinks = add_output("dsinks", statistics, {problem.heads_q});
  }
  runner.run(backward);
  runner.fetch(outputs);
  return outputs;
}

void save(const std::string& path, const Outputs& outputs, const Problem& problem) {
  std::vector<SafeTensor> tensors;
  for (const auto& [name, tensor] : outputs) {
    const TensorView& view = tensor.view();
    const auto* dtype =
        std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& entry) { return entry.second == view.dtype; });
    tensors.push_back({name,
                       std::string(dtype->first),
                       {view.shape.begin(), view.shape.begin() + view.rank},
                       {static_cast<const std::byte*>(view.data),
                        static_cast<std::size_t>(view.elements() * dtype_bytes(view.dtype))}});
  }
  const std::vector<std::byte> header =
      safetensors_header(tensors, {{"producer", fmt::format("tessera {}", kVersion)}, {"problem", problem.describe()}});
  std::vector<std::span<const std::byte>> pieces{header};
  for (const SafeTensor& tensor : tensors) {
    pieces.push_back(tensor.data);
  }
  write_file_atomically(path, pieces);
}

int run_file(const RunFlags& flags) {
  require_writable(flags.output);
  try {
    const std::vector<std::byte> file = read_file(flags.input);
    const Inputs inputs(parse_safetensors(file));
    const Problem problem = flags.problem.problem(problem_of_tensors(inputs, flags.problem));
    fmt::print("{}\n", bold(problem.describe()));
    const Outputs outputs = compute(problem, inputs, flags.plan);
    save(flags.output, outputs, problem);
    std::vector<std::string> names;
    std::transform(outputs.begin(), outputs.end(), std::back_inserter(names),
                   [](const auto& entry) { return entry.first; });
    fmt::print("{} written to {}\n", fmt::join(names, ", "), flags.output);
  } catch (const Error& error) {
    const std::string message = error.what();
    const bool named =
        message.find(flags.input) != std::string::npos || message.find(flags.output) != std::string::npos;
    throw Error(error.code(), named ? message : flags.input + ": " + message);
  }
  return 0;
}

}  // namespace

Command add_run(::CLI::App& root) {
  ::CLI::App* app = root.add_subcommand("run", "Attention over the tensors of a safetensors file");
  auto flags = std::make_shared<RunFlags>();
  app->add_option("IN", flags->input, "safetensors file with q, k, v; dout for gradients")->required()->type_name("");
  app->add_option("--out", flags->output, "safetensors file to write: out, lse; dq, dk, dv")
      ->required()
      ->type_name("FILE");
  flags->problem.add_options(*app);
  add_plan_flags(*app, flags->plan);
  app->footer(
      "IN holds q [batch, seq, heads, dim], k and v, or with --lengths [total, heads, dim]; F32, BF16 or F16.\n"
      "Optional: bias, alibi_slopes, sinks; dout (and dlse) for gradients; out and lse of an earlier run to\n"
      "differentiate without the forward pass. The output is written to a temporary name and renamed.\n"
      "Example:\n"
      "  tessera run qkv.safetensors --out attention.safetensors --mask causal");
  return {app, [flags] { return run_file(*flags); }};
}

}  // namespace tessera::cli
