#include "dist/rank_work.h"

#include <algorithm>
#include <array>

#include "core/fail.h"
#include "dist/fuse.h"

namespace tessera::internal {

namespace {

// Tensors one after the other, each aligned. Without memory it counts.
class Layout {
 public:
  Layout(std::byte* memory, Device device) : memory_(memory), device_(device) {}
  TensorView take(DType dtype, std::initializer_list<std::int64_t> shape) {
    const TensorView view(take_bytes(0), dtype, shape, device_);
    take_bytes(view.elements() * dtype_bytes(dtype));
    return view;
  }
  std::byte* take_bytes(std::int64_t bytes) {
    std::byte* const start = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += round_up(bytes, kWorkspaceAlignment);
    return start;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  Device device_;
  std::int64_t bytes_ = 0;
};

std::vector<Range> rows_of(const SequenceLayout& layout, int rank) {
  std::vector<Range> rows;
  std::int64_t begin = 0;
  for (const Stripe& piece : layout.pieces(rank)) {
    rows.push_back({begin, begin + piece.count});
    begin += piece.count;
  }
  return rows;
}

std::span<const std::byte> bytes_of(const ConstTensorView& view) {
  return {static_cast<const std::byte*>(view.data),
          static_cast<std::size_t>(view.elements() * dtype_bytes(view.dtype))};
}

std::vector<TensorView> gradient_views(const RingGroup& group, bool queries, std::byte* memory, std::int64_t tokens,
                                       DType dtype, Device device) {
  if (queries) {
    return {query_gradients(memory, group.whole, tokens, dtype, device)};
  }
  const KeysBlock keys = key_gradients(memory, group.whole, tokens, dtype, device);
  return {keys.k, keys.v};
}

}  // namespace

std::vector<TensorView> block_tensors(const RingGroup& group, std::byte* memory, int owner, Device device) {
  if (group.queries_travel) {
    const QueriesBlock block = queries_block(memory, group.whole, group.query_layout.tokens(owner), device);
    return in_memory_order(block, device);
  }
  const KeysBlock block = keys_block(memory, group.whole, group.key_layout.tokens(owner), device);
  return {block.k, block.v};
}

RankTasks::RankTasks(const RingGroup& group, const Route& route, const PlanOptions& options) {
  const bool halves = group.pass == Pass::backward && group.topology.ranks() > 1;
  Tasks closing;
  for (const RouteStep& step : route.steps) {
    const bool own = step.owner == route.rank;
    const std::vector<SubProblem> parts = fused_parts(group, route.rank, step.owner);
    const auto with = [&](const Heads& heads) { return make_tasks(parts, group.whole, heads, group.pass, options); };
    if (own && halves) {
      steps.push_back(with(half_of_heads(group.whole, false)));
      closing = with(half_of_heads(group.whole, true));
    } else {
      steps.push_back(with(all_heads(group.whole)));
    }
  }
  steps.push_back(std::move(closing));
}

int staying_slots(const RingGroup& group, DeviceKind device) {
  if (device == DeviceKind::cpu) {
    return 1;
  }
  constexpr int kMost = static_cast<int>(kMostTerms) - 1;  // beside the sum of those before
  return group.pass == Pass::forward ? std::clamp(group.topology.ranks(), 2, kMost) : 2;
}

KeptMemory::KeptMemory(std::byte* memory, const RingGroup& group, int rank, Device device) {
  const Problem& whole = group.whole;
  const std::int64_t queries = group.query_layout.tokens(rank);
  const DType term = term_dtype(whole, device);
  const bool on_cpu = device.kind == DeviceKind::cpu;
  const int slots_of_each = staying_slots(group, device.kind);
  Layout layout(memory, device);
  if (group.pass == Pass::forward) {
    const auto take = [&](DType dtype) {
      const TensorView out = layout.take(dtype, {whole.batch, queries, whole.heads_q, whole.dim_v});
      return Partial{out, layout.take(DType::float32, {whole.batch, whole.heads_q, queries})};
    };
    sums = {take(DType::float32)};
    slots.resize(1);
    for (int slot = 0; slot < slots_of_each; ++slot) {
      slots[0].push_back(take(term));
    }
  } else {
    const auto bytes_for = [&](bool of_queries, std::int64_t tokens, DType dtype) {
      const TokenBytes& floats = group.token_bytes;  // of float32 gradients
      return whole.batch * tokens * (of_queries ? floats.query_gradients : floats.key_gradients) / 4 *
             dtype_bytes(dtype);
    };
    const auto views = [&](bool of_queries, std::byte* at, DType dtype) {
      const std::int64_t tokens = of_queries ? queries : group.key_layout.tokens(rank);
      std::vector<Partial> partials;
      for (const TensorView& view : gradient_views(group, of_queries, at, tokens, dtype, device)) {
        partials.push_back({view, {}});
      }
      return partials;
    };
    const auto take = [&](bool of_queries, DType dtype) {
      const std::int64_t tokens = of_queries ? queries : group.key_layout.tokens(rank);
      return views(of_queries, layout.take_bytes(bytes_for(of_queries, tokens, dtype)), dtype);
    };
    const auto add_slot = [](std::vector<std::vector<Partial>>& all, const std::vector<Partial>& slot) {
      all.resize(slot.size());
      for (std::size_t n = 0; n < slot.size(); ++n) {
        all[n].push_back(slot[n]);
      }
    };
    const bool travel = group.queries_travel;
    sums = take(!travel, DType::float32);
    for (int slot = 0; slot < slots_of_each; ++slot) {
      add_slot(slots, take(!travel, term));
    }
    own_sums = take(travel, DType::float32);
    const SequenceLayout& travelling = travel ? group.query_layout : group.key_layout;
    travelling_slot = layout.take_bytes(bytes_for(travel, travelling.longest_tokens(), term));
    // On the CPU a slot is empty after each task, and one serves all blocks.
    add_slot(own_slots, on_cpu ? views(travel, travelling_slot, term) : take(travel, term));
    minus_delta = layout.take(DType::float32, {whole.batch, whole.heads_q, queries});
  }
  if (whole.alibi) {
    slopes = layout.take(DType::float32, {whole.batch, whole.heads_q});
  }
  if (whole.sinks) {
    dsinks = layout.take(DType::float32, {whole.heads_q});
  }
  bytes = layout.bytes();
}

TaskRun RankContext::task_run() const {
  TaskRun run{group.whole, memory, device, score, {}, {}, stream};
  if (!score.alibi_slopes.absent()) {
    const bool striped = group.key_layout.kind() == SequenceLayout::Kind::striped;
    const auto stride = static_cast<float>(striped ? group.topology.ranks() : 1);
    TensorView lines(kept.slopes.data, DType::float32, {group.whole.batch, group.whole.heads_q, 1}, device);
    fill(lines, 0, stream);
    add_per_head(lines, score.alibi_slopes, 0, stride, stream);
    run.slopes = kept.slopes;
  }
  return run;
}

PlaceGrid RankContext::grid(bool queries, int owner) const {
  const Problem& whole = group.whole;
  PlaceGrid grid;
  if (whole.key_lengths.empty()) {
    grid.batches.push_back({0, whole.batch});
  } else {
    for (std::int64_t b = 0; b < whole.batch; ++b) {
      grid.batches.push_back({b, b + 1});
    }
  }
  grid.rows = rows_of(queries ? group.query_layout : group.key_layout, owner);
  const bool halves = group.pass == Pass::backward && group.topology.ranks() > 1;
  for (const Heads& heads :
       halves ? std::vector{half_of_heads(whole, false), half_of_heads(whole, true)} : std::vector{all_heads(whole)}) {
    const Range& range = queries ? heads.queries : heads.keys;
    if (!range.empty()) {
      grid.heads.push_back(range);
    }
  }
  return grid;
}

Gathered RankContext::gathered(bool queries, bool travels, int owner, std::vector<Partial> slots,
                               const Partial& sum) const {
  const bool shared_slots = travels && device.kind == DeviceKind::cpu;
  return {grid(queries, owner), std::move(slots), sum, shared_slots, threads, stream};
}

std::vector<std::span<const std::byte>> RankContext::messages(std::byte* packed,
                                                              std::span<const ConstTensorView> tensors) const {
  std::vector<std::span<const std::byte>> messages;
  if (group.topology.ranks() == 1) {
    return messages;
  }
  const std::vector<TensorView> views = block_tensors(group, packed, rank, device);
  for (std::size_t n = 0; n < views.size(); ++n) {
    if (tensors[n].contiguous()) {
      messages.push_back(bytes_of(tensors[n]));
    } else {
      convert(tensors[n], views[n], stream);
      messages.push_back(bytes_of(views[n]));
    }
  }
  return messages;
}

ForwardWork::ForwardWork(RankContext context, const ForwardTensors& tensors)
    : context_(std::move(context)),
      tensors_(tensors),
      run_(context_.task_run()),
      out_(context_.gathered(true, false, context_.rank, context_.kept.slots[0], context_.kept.sums[0])) {
  if (context_.group.whole.sinks) {  // one key for each head whose value is zero, in every row once
    const Partial& sum = context_.kept.sums[0];
    fill(sum.out, 0, context_.stream);
    fill(sum.lse, 0, context_.stream);
    add_per_head(sum.lse, tensors.score.sinks, 0, 1, context_.stream);
    out_.begin_with_sum();
  }
}

std::span<const std::span<const std::byte>> ForwardWork::own_messages(std::byte* packed) {
  messages_ = context_.messages(packed, std::to_array<ConstTensorView>({tensors_.k, tensors_.v}));
  return messages_;
}

void ForwardWork::compute(int step, std::byte* block, std::byte* /*sum*/) {
  ConstKeysBlock keys{tensors_.k, tensors_.v};
  if (block != nullptr) {
    const std::int64_t tokens = context_.group.key_layout.tokens(context_.owner_of(step));
    keys = as_const(keys_block(block, context_.group.whole, tokens, context_.device));
  }
  run_tasks(context_.tasks.steps[static_cast<std::size_t>(step)], run_, tensors_.q, keys, out_);
}

void ForwardWork::finish() {
  const TensorView& lse = context_.kept.sums[0].lse;
  out_.result({tensors_.out, lse});
  if (!tensors_.lse.absent()) {
    convert(lse, tensors_.lse, context_.stream);
  }
}

BackwardWork::BackwardWork(RankContext context, const BackwardTensors& tensors)
    : context_(std::move(context)), tensors_(tensors), run_(context_.task_run()) {
  const KeptMemory& kept = context_.kept;
  const bool travel = context_.group.queries_travel;
  for (std::size_t n = 0; n < kept.sums.size(); ++n) {
    staying_.push_back(context_.gathered(!travel, false, context_.rank, kept.slots[n], kept.sums[n]));
  }
  for (std::size_t n = 0; n < kept.own_sums.size(); ++n) {
    own_.push_back(context_.gathered(travel, true, context_.rank, kept.own_slots[n], kept.own_sums[n]));
  }
  negative_delta(tensors.dout, tensors.out, tensors.dlse, kept.minus_delta, context_.stream);
  if (!tensors.dsinks.absent()) {
    sink_gradient(tensors.score.sinks, tensors.lse, kept.minus_delta, kept.dsinks, context_.stream);
  }
  if (!tensors.dbias.absent()) {
    const auto floats = [&](std::int64_t count) {
      return dbias_memory_.emplace_back(context_.communicator.allocate(count * std::int64_t{sizeof(float)})).get();
    };
    run_.dbias = TensorView(floats(tensors.dbias.elements()), DType::float32, tensors.dbias.shape, {}, context_.device);
    run_.dbias_of_task = floats(most_dbias_elements(context_.tasks.steps, run_.dbias));
    fill(run_.dbias, 0, context_.stream);
  }
}

std::span<const std::span<const std::byte>> BackwardWork::own_messages(std::byte* packed) {
  messages_ = context_.group.queries_travel
                  ? context_.messages(packed, in_memory_order(own_queries(), context_.device))
                  : context_.messages(packed, std::to_array<ConstTensorView>({tensors_.k, tensors_.v}));
  return messages_;
}

std::vector<TensorView> BackwardWork::gradient_tensors(std::byte* memory, int owner, DType dtype) const {
  const bool travel = context_.group.queries_travel;
  const SequenceLayout& layout = travel ? context_.group.query_layout : context_.group.key_layout;
  return gradient_views(context_.group, travel, memory, layout.tokens(owner), dtype, context_.device);
}

std::vector<Gathered> BackwardWork::travelling(int owner, std::byte* sum) {
  const auto sums = gradient_tensors(sum, owner, DType::float32);
  const auto slots =
      gradient_tensors(context_.kept.travelling_slot, owner, term_dtype(context_.group.whole, context_.device));
  std::vector<Gathered> all;
  all.reserve(sums.size());
  for (std::size_t n = 0; n < sums.size(); ++n) {
    all.push_back(
        context_.gathered(context_.group.queries_travel, true, owner, {Partial{slots[n], {}}}, Partial{sums[n], {}}));
  }
  return all;
}

ConstQueriesBlock BackwardWork::own_queries() const {
  return {tensors_.lse, context_.kept.minus_delta, tensors_.dout, tensors_.q};
}

void BackwardWork::run(const Tasks& tasks, const ConstQueriesBlock& queries, const ConstKeysBlock& keys,
                       std::vector<Gathered>& travelling) {
  if (context_.group.queries_travel) {
    run_tasks(tasks, run_, queries, keys, GatheredGradients{travelling[0], staying_[0], staying_[1]});
  } else {
    run_tasks(tasks, run_, queries, keys, GatheredGradients{staying_[0], travelling[0], travelling[1]});
  }
}

void BackwardWork::compute(int step, std::byte* block, std::byte* sum) {
  const Tasks& tasks = context_.tasks.steps[static_cast<std::size_t>(step)];
  if (block == nullptr) {
    run(tasks, own_queries(), {tensors_.k, tensors_.v}, own_);
    return;
  }
  const int owner = context_.owner_of(step);
  const RingGroup& group = context_.group;
  block_ = travelling(owner, sum);
  block_step_ = step;
  if (group.queries_travel) {
    const QueriesBlock queries = queries_block(block, group.whole, group.query_layout.tokens(owner), context_.device);
    run(tasks, as_const(queries), {tensors_.k, tensors_.v}, block_);
  } else {
    const KeysBlock keys = keys_block(block, group.whole, group.key_layout.tokens(owner), context_.device);
    run(tasks, own_queries(), as_const(keys), block_);
  }
}

void BackwardWork::gather(int step, std::byte* sum, std::byte* arrived) {
  const int owner = context_.owner_of(step);
  if (block_step_ != step) {
    block_ = travelling(owner, sum);
  }
  if (arrived != nullptr) {
    const auto terms = gradient_tensors(arrived, owner, DType::float32);
    for (std::size_t n = 0; n < terms.size(); ++n) {
      block_[n].add({terms[n], {}});
    }
  }
  for (Gathered& gradient : block_) {
    gradient.fold();
  }
}

void BackwardWork::add_to_own(std::byte* arrived, bool stays) {
  const auto terms = gradient_tensors(arrived, context_.rank, DType::float32);
  for (std::size_t n = 0; n < terms.size(); ++n) {
    own_[n].add({terms[n], {}});
    if (!stays) {
      own_[n].fold();
    }
  }
}

void BackwardWork::finish_own() { run(context_.tasks.closing(), own_queries(), {tensors_.k, tensors_.v}, own_); }

void BackwardWork::finish() {
  std::vector<TensorView> keys{tensors_.dk, tensors_.dv};
  std::vector<TensorView> queries{tensors_.dq};
  const bool travel = context_.group.queries_travel;
  const auto write = [](std::vector<Gathered>& all, const std::vector<TensorView>& targets) {
    for (std::size_t n = 0; n < all.size(); ++n) {
      all[n].result({targets[n], {}});
    }
  };
  write(staying_, travel ? keys : queries);
  write(own_, travel ? queries : keys);
  if (!tensors_.dbias.absent()) {
    convert(run_.dbias, tensors_.dbias, context_.stream);
  }
  if (!tensors_.dsinks.absent()) {
    convert(context_.kept.dsinks, tensors_.dsinks, context_.stream);
  }
}

}  // namespace tessera::internal
