#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "core/fail.h"
#include "cuda/stream.h"
#include "dist/rank_work.h"
#include "dist/ring_engine.h"
#include "dist/ring_program.h"
#include "plan/validate.h"
#include "tessera/distributed.h"

namespace tessera {

namespace {

using internal::RingGroup;

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
  if (whole.score_function) {
    hash.add(whole.score_function->hash());
  }
  if (whole.mask.has_segments()) {
    hash.add(whole.mask.segment_ids().query);
    hash.add(whole.mask.segment_ids().key);
  }
  if (whole.mask.has_blocks()) {
    hash.add(whole.mask.block_mask().to_bytes());
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

std::string device_text(Device device) {
  return device.kind == DeviceKind::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

Device checked_device(const Communicator& communicator, const DistributedOptions& options) {
  if (!(options.plan.device == communicator.device())) {
    internal::fail_argument("plan.device", device_text(options.plan.device),
                            "that of the communicator, " + device_text(communicator.device()));
  }
  return communicator.device();
}

void check_dbias(const Problem& whole, const TensorView& dbias, Device device) {
  if (dbias.absent()) {
    return;
  }
  if (!(dbias.device == device)) {
    internal::fail_argument("dbias device", device_text(dbias.device), device_text(device));
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

internal::MessageBytes message_bytes(const RingGroup& group, Device device) {
  internal::MessageBytes bytes;
  for (int owner = 0; owner < group.topology.ranks(); ++owner) {
    bytes.block.emplace_back();
    for (const TensorView& tensor : internal::block_tensors(group, nullptr, owner, device)) {
      bytes.block.back().push_back(tensor.elements() * dtype_bytes(tensor.dtype));
    }
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
        device(checked_device(communicator, options_)),
        options(options_),
        group(whole, pass, communicator.size(), options),
        local(local_problem(group, communicator.rank())),
        engine(group.route(communicator.rank()), message_bytes(group, device), communicator),
        tasks(group, engine.route(), options.plan),
        task_memory(tasks.steps, group.whole, pass, communicator),
        facts(group.facts(communicator.rank())) {
    const std::int64_t kept_bytes = internal::KeptMemory(nullptr, group, communicator.rank(), device).bytes;
    kept_memory = communicator.allocate(kept_bytes);
    facts.memory_bytes = engine.memory_bytes() + task_memory.bytes() + kept_bytes;
  }

  // A failure of this rank is told to the others. What was put into the stream may use memory that goes away.
  template <class Action>
  RunReport guarded(void* stream, const Action& action) {
    try {
      return action();
    } catch (const std::exception& error) {
      communicator.abort(error);
      if (device.kind == DeviceKind::cuda) {
        internal::settle_stream(device.index, stream);
      }
      throw;
    }
  }

  internal::RankContext context(const ScoreTensors& score, void* stream) {
    return {group,        engine.route(),
            communicator, communicator.rank(),
            device,       tasks,
            task_memory,  internal::KeptMemory(kept_memory.get(), group, communicator.rank(), device),
            score,        options.plan.threads,
            stream};
  }

  RunReport forward(const ForwardTensors& tensors, void* stream);
  RunReport backward(const BackwardTensors& tensors, void* stream);

  Communicator& communicator;
  Device device;
  DistributedOptions options;
  RingGroup group;
  Problem local;
  internal::RingEngine engine;
  internal::RankTasks tasks;
  internal::TaskMemory task_memory;
  DistributedFacts facts;
  Communicator::Memory kept_memory;
};

RunReport DistributedPlan::State::forward(const ForwardTensors& tensors, void* stream) {
  internal::validate(local, tensors, device);
  internal::Recorder recorder(options.record_timeline, communicator, stream);
  internal::ForwardWork work(context(tensors.score, stream), tensors);
  engine.run(work, work.own_messages(engine.own_block()), recorder, stream);
  work.finish();
  return recorder.finish();
}

RunReport DistributedPlan::State::backward(const BackwardTensors& tensors, void* stream) {
  BackwardTensors checked = tensors;
  checked.dbias = {};
  internal::validate(local, checked, device);
  check_dbias(group.whole, tensors.dbias, device);
  internal::Recorder recorder(options.record_timeline, communicator, stream);
  internal::BackwardWork work(context(tensors.score, stream), tensors);
  engine.run(work, work.own_messages(engine.own_block()), recorder, stream);
  work.finish();
  return recorder.finish();
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
  return state_->guarded(stream, [&] {
    if (state_->group.pass != Pass::forward) {
      internal::fail_argument("tensors", "forward tensors", "those of the pass that the plan was made for, backward");
    }
    return state_->forward(tensors, stream);
  });
}

RunReport DistributedPlan::run(const BackwardTensors& tensors, void* stream) {
  return state_->guarded(stream, [&] {
    if (state_->group.pass != Pass::backward) {
      internal::fail_argument("tensors", "backward tensors", "those of the pass that the plan was made for, forward");
    }
    return state_->backward(tensors, stream);
  });
}

}  // namespace tessera
