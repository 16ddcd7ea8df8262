#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <new>

#include "core/fail.h"
#include "dist/block_tasks.h"
#include "dist/ring_engine.h"
#include "dist/ring_program.h"
#include "dist/tensor_ops.h"
#include "plan/validate.h"
#include "tessera/distributed.h"

namespace tessera {

namespace {

using internal::convert;
using internal::fill;
using internal::RingGroup;
using internal::Tasks;

// What ranks compare before they start: a hash of everything, and words for people.
struct Statement {
  std::uint64_t hash = 0;
  std::array<char, 504> text{};
};

class Hash {
 public:
  template <class Values>
  void add(const Values& values) {  // FNV-1a
    for (const auto& value : values) {
      value_ = (value_ ^ static_cast<std::uint64_t>(value)) * 0x100000001B3ULL;
    }
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xCBF29CE484222325ULL;
};

Statement statement_of(const Problem& whole, Pass pass, const DistributedOptions& options) {
  const std::string text = std::string(pass_name(pass)) + ", " + std::string(schedule_name(options.schedule)) + ", " +
                           std::string(layout_name(options.layout)) + ", " +
                           std::to_string(options.links.ranks_per_node) + " ranks a node, " +
                           std::to_string(options.ranks) + " ranks, " + whole.describe();
  Hash hash;
  hash.add(text);
  hash.add(whole.key_lengths);
  if (whole.mask.has_segments()) {
    hash.add(whole.mask.segment_ids().query);
    hash.add(whole.mask.segment_ids().key);
  }
  Statement statement;
  statement.hash = hash.value();
  std::copy_n(text.begin(), std::min(text.size(), statement.text.size() - 1), statement.text.begin());
  return statement;
}

// Throws Error(peer) that names the first rank whose statement is not that of most ranks.
void require_agreement(Communicator& communicator, const Statement& mine) {
  std::vector<Statement> all;
  for (const auto& bytes : communicator.gather(std::as_bytes(std::span(&mine, 1)))) {
    std::memcpy(&all.emplace_back(), bytes.data(), sizeof(Statement));
  }
  std::map<std::uint64_t, int> votes;
  for (const Statement& statement : all) {
    ++votes[statement.hash];
  }
  const auto more = [&](const Statement& a, const Statement& b) { return votes[a.hash] < votes[b.hash]; };
  const auto usual = std::max_element(all.begin(), all.end(), more);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].hash != usual->hash) {
      throw Error(ErrorCode::peer, "rank " + std::to_string(rank) + " plans something else (" + all[rank].text.data() +
                                       ") than rank " + std::to_string(usual - all.begin()) + " (" +
                                       usual->text.data() + ")");
    }
  }
}

// The problem whose shapes are those of one rank's tensors.
Problem local_problem(const RingGroup& group, int rank) {
  Problem local = group.whole;
  local.seq_q = group.query_layout.tokens(rank);
  local.seq_k = group.key_layout.tokens(rank);
  local.mask = Mask::none();
  local.key_lengths.clear();
  return local;
}

void check_dbias(const Problem& whole, const TensorView& dbias) {
  if (dbias.absent()) {
    return;
  }
  const std::array<std::int64_t, kMaxRank> extents{whole.batch, whole.heads_q, whole.seq_q, whole.seq_k};
  bool fits = dbias.rank == kMaxRank && whole.bias_shape.has_value();
  for (std::size_t axis = 0; fits && axis < extents.size(); ++axis) {
    fits = dbias.shape[axis] == 1 || dbias.shape[axis] == extents[axis];
  }
  if (!fits || (dbias.dtype != DType::float32 && dbias.dtype != whole.dtype)) {
    internal::fail_argument("dbias", dbias.describe(),
                            "absent or, beside a bias, extents of 1 or of the whole problem, float32 or its dtype");
  }
}

std::vector<Tasks> make_all_tasks(const RingGroup& group, const internal::Route& route, const PlanOptions& options) {
  std::vector<Tasks> steps;
  steps.reserve(route.steps.size());
  for (const internal::RouteStep& step : route.steps) {
    steps.push_back(internal::make_tasks(group.parts(route.rank, step.owner), group.pass, options));
  }
  if (group.pass == Pass::forward && !group.whole.sinks) {
    internal::mark_first(steps);
  }
  return steps;
}

internal::MessageBytes message_bytes(const RingGroup& group) {
  internal::MessageBytes bytes;
  for (int owner = 0; owner < group.topology.ranks(); ++owner) {
    bytes.block.push_back(group.block_bytes(owner));
    if (group.pass == Pass::backward) {
      bytes.sum.push_back(group.sum_bytes(owner));
    }
  }
  return bytes;
}

}  // namespace

std::string_view schedule_name(RingSchedule schedule) {
  switch (schedule) {
    case RingSchedule::automatic:
      return "automatic";
    case RingSchedule::ring:
      return "ring";
    case RingSchedule::burst:
      return "burst";
    case RingSchedule::double_ring:
      return "double_ring";
  }
  return "unknown";
}

double RunReport::share_hidden() const {
  return transfer_seconds > 0 ? std::clamp(1 - wait_seconds / transfer_seconds, 0.0, 1.0) : 1.0;
}

std::vector<DistributedFacts> distributed_facts(const Problem& whole, Pass pass, int ranks,
                                                const DistributedOptions& options) {
  const RingGroup group(whole, pass, ranks, options);
  std::vector<DistributedFacts> all;
  all.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    all.push_back(group.facts(rank));
  }
  return all;
}

struct DistributedPlan::State {
  State(const Problem& whole, Pass pass, Communicator& communicator_, const DistributedOptions& options_)
      : communicator(communicator_),
        options(options_),
        group(whole, pass, communicator.size(), options),
        local(local_problem(group, communicator.rank())),
        engine(group.route(communicator.rank()), message_bytes(group), communicator),
        steps(make_all_tasks(group, engine.route(), options.plan)),
        memory(steps, group.whole, pass, communicator),
        facts(group.facts(communicator.rank())) {
    if (pass == Pass::forward) {
      kept_bytes = local.batch * local.seq_q * local.heads_q * (local.dim_v + 1) * dtype_bytes(DType::float32);
    } else if (group.queries_travel) {
      kept_bytes = local.batch * local.seq_k * group.token_bytes.key_gradients;
    } else {
      kept_bytes = local.batch * local.seq_q * (group.token_bytes.query_gradients + group.token_bytes.queries);
    }
    kept = communicator.allocate(kept_bytes);
    facts.memory_bytes = engine.memory_bytes() + memory.bytes() + kept_bytes;
  }

  // A failure of this rank is told to the others.
  template <class Action>
  RunReport guarded(const Action& action) {
    try {
      return action();
    } catch (const std::exception& error) {
      communicator.abort(error);
      throw;
    }
  }

  internal::TaskRun task_run(const ScoreTensors& score, void* stream) {
    internal::TaskRun run{group.whole, memory, score, {}, {}, options.plan.threads, stream};
    if (!score.alibi_slopes.absent()) {
      const auto stride = options.layout == SequenceLayout::Kind::striped ? communicator.size() : 1;
      slopes = internal::scaled_slopes(score.alibi_slopes, static_cast<float>(stride));
      const ConstTensorView& given = score.alibi_slopes;
      run.slopes = ConstTensorView(slopes.data(), DType::float32,
                                   std::span(given.shape).first(static_cast<std::size_t>(given.rank)), {});
    }
    return run;
  }

  RunReport forward(const ForwardTensors& tensors, void* stream);
  RunReport backward(const BackwardTensors& tensors, void* stream);

  Communicator& communicator;
  DistributedOptions options;
  RingGroup group;
  Problem local;
  internal::RingEngine engine;
  std::vector<Tasks> steps;
  internal::TaskMemory memory;
  DistributedFacts facts;
  // What stays at this rank: O and LSE; or the float32 gradients of the tensors that do not travel, with the block that is
  // made of dO, Q, LSE and D when those are the ones.
  std::int64_t kept_bytes = 0;
  Communicator::Memory kept;
  std::vector<float> slopes;
};

RunReport DistributedPlan::State::forward(const ForwardTensors& tensors, void* stream) {
  internal::validate(local, tensors, options.plan.device);
  const internal::KeysBlock own = internal::keys_block(engine.own_block().data(), group.whole, local.seq_k);
  convert(tensors.k, own.k);
  convert(tensors.v, own.v);

  auto* floats = reinterpret_cast<float*>(kept.get());
  const std::int64_t query_rows = local.batch * local.seq_q * local.heads_q;
  const Partial sum{{floats, DType::float32, {local.batch, local.seq_q, local.heads_q, local.dim_v}},
                    {floats + query_rows * local.dim_v, DType::float32, {local.batch, local.heads_q, local.seq_q}}};
  fill(sum.out, 0);
  fill(sum.lse, -std::numeric_limits<float>::infinity());
  if (local.sinks) {  // one key for each head whose value is zero, in every row once
    fill(sum.lse, 0);
    internal::add_per_head(sum.lse, tensors.score.sinks, 0, 1);
  }
  const internal::TaskRun run = task_run(tensors.score, stream);
  const auto compute = [&](int step, std::span<const std::byte> block, std::span<float> /*sum*/) {
    const int owner = engine.route().steps[static_cast<std::size_t>(step)].owner;
    const internal::KeysBlock keys =
        internal::keys_block(const_cast<std::byte*>(block.data()), group.whole, group.key_layout.tokens(owner));
    internal::run_tasks(steps[static_cast<std::size_t>(step)], run, tensors.q, as_const(keys), sum);
  };
  RunReport report = engine.run(compute, options.record_timeline, stream);
  convert(sum.out, tensors.out);
  if (!tensors.lse.absent()) {
    convert(sum.lse, tensors.lse);
  }
  return report;
}

RunReport DistributedPlan::State::backward(const BackwardTensors& tensors, void* stream) {
  BackwardTensors checked = tensors;
  checked.dbias = {};
  internal::validate(local, checked, options.plan.device);
  check_dbias(group.whole, tensors.dbias);

  // Queries with dO, LSE and D are a block in either schedule; keys only where they travel.
  const bool queries_travel = group.queries_travel;
  std::byte* queries_memory = queries_travel
                                  ? engine.own_block().data()
                                  : kept.get() + local.batch * local.seq_q * group.token_bytes.query_gradients;
  const internal::QueriesBlock own_queries = internal::queries_block(queries_memory, group.whole, local.seq_q);
  convert(tensors.lse, own_queries.lse);
  internal::negative_delta(tensors.dout, tensors.out, tensors.dlse, own_queries.minus_delta);
  convert(tensors.dout, own_queries.dout);
  convert(tensors.q, own_queries.q);
  if (!queries_travel) {
    const internal::KeysBlock own_keys = internal::keys_block(engine.own_block().data(), group.whole, local.seq_k);
    convert(tensors.k, own_keys.k);
    convert(tensors.v, own_keys.v);
  }
  // The gradients that stay.
  const TensorView dq =
      queries_travel
          ? internal::query_gradients(reinterpret_cast<std::byte*>(engine.own_sum().data()), group.whole, local.seq_q)
          : internal::query_gradients(kept.get(), group.whole, local.seq_q);
  const internal::KeysBlock dkeys = internal::key_gradients(
      queries_travel ? kept.get() : reinterpret_cast<std::byte*>(engine.own_sum().data()), group.whole, local.seq_k);
  if (queries_travel) {
    fill(dkeys.k, 0);
    fill(dkeys.v, 0);
  } else {
    fill(dq, 0);
  }

  std::vector<float> dsinks(static_cast<std::size_t>(tensors.dsinks.elements()));
  if (!dsinks.empty()) {  // now, while the block is there
    internal::sink_gradient(tensors.score.sinks, own_queries.lse, own_queries.minus_delta,
                            TensorView(dsinks.data(), DType::float32, {group.whole.heads_q}));
  }
  internal::TaskRun run = task_run(tensors.score, stream);
  std::vector<float> dbias_sums(static_cast<std::size_t>(tensors.dbias.elements()), 0.0F);
  if (!tensors.dbias.absent()) {
    run.dbias = TensorView(dbias_sums.data(), DType::float32, tensors.dbias.shape, {});
  }
  const auto compute = [&](int step, std::span<const std::byte> block, std::span<float> sum) {
    const int owner = engine.route().steps[static_cast<std::size_t>(step)].owner;
    const Tasks& tasks = steps[static_cast<std::size_t>(step)];
    auto* memory_of_block = const_cast<std::byte*>(block.data());
    auto* memory_of_sum = reinterpret_cast<std::byte*>(sum.data());
    if (queries_travel) {
      const std::int64_t tokens = group.query_layout.tokens(owner);
      internal::run_tasks(tasks, run, as_const(internal::queries_block(memory_of_block, group.whole, tokens)),
                          {tensors.k, tensors.v}, internal::query_gradients(memory_of_sum, group.whole, tokens), dkeys);
    } else {
      const std::int64_t tokens = group.key_layout.tokens(owner);
      internal::run_tasks(tasks, run, as_const(own_queries),
                          as_const(internal::keys_block(memory_of_block, group.whole, tokens)), dq,
                          internal::key_gradients(memory_of_sum, group.whole, tokens));
    }
  };
  RunReport report = engine.run(compute, options.record_timeline, stream);
  convert(dq, tensors.dq);
  convert(dkeys.k, tensors.dk);
  convert(dkeys.v, tensors.dv);
  if (!tensors.dbias.absent()) {
    convert(run.dbias, tensors.dbias);
  }
  if (!dsinks.empty()) {
    convert(TensorView(dsinks.data(), DType::float32, {group.whole.heads_q}), tensors.dsinks);
  }
  return report;
}

DistributedPlan DistributedPlan::make(const Problem& whole, Pass pass, Communicator& communicator,
                                      const DistributedOptions& options) {
  try {
    auto state = std::make_unique<State>(whole, pass, communicator, options);
    require_agreement(communicator, statement_of(whole, pass, options));
    return DistributedPlan(std::move(state));
  } catch (const std::exception& error) {
    communicator.abort(error);
    throw;
  }
}

DistributedPlan::DistributedPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
DistributedPlan::DistributedPlan(DistributedPlan&&) noexcept = default;
DistributedPlan& DistributedPlan::operator=(DistributedPlan&&) noexcept = default;
DistributedPlan::~DistributedPlan() = default;

const DistributedFacts& DistributedPlan::facts() const { return state_->facts; }

RunReport DistributedPlan::run(const ForwardTensors& tensors, void* stream) {
  return state_->guarded([&] {
    if (state_->group.pass != Pass::forward) {
      internal::fail_argument("tensors", "forward tensors", "those of the pass that the plan was made for, backward");
    }
    return state_->forward(tensors, stream);
  });
}

RunReport DistributedPlan::run(const BackwardTensors& tensors, void* stream) {
  return state_->guarded([&] {
    if (state_->group.pass != Pass::backward) {
      internal::fail_argument("tensors", "backward tensors", "those of the pass that the plan was made for, forward");
    }
    return state_->backward(tensors, stream);
  });
}

}  // namespace tessera
