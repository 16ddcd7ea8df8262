#include "rank_group.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "refuse.h"

namespace tessera::python {

namespace {

class Hash {  // FNV-1a
 public:
  template <class Values>
  void add(const Values& values) {
    for (const auto& value : values) {
      value_ = (value_ ^ static_cast<std::uint64_t>(value)) * 0x100000001B3ULL;
    }
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xCBF29CE484222325ULL;
};

// Lengths and the seed are compared by themselves.
std::uint64_t hash_of(const Request& request) {
  Problem problem = request.problem;
  problem.seq_q = problem.seq_k = 0;
  problem.dropout.seed = 0;
  const DistributedOptions& options = request.options;
  Hash hash;
  hash.add(problem.describe());
  hash.add(problem.key_lengths);
  if (problem.mask.has_segments()) {
    hash.add(problem.mask.segment_ids().query);
    hash.add(problem.mask.segment_ids().key);
  }
  hash.add(options.plan.impl + "," + options.plan.isa);
  hash.add(std::to_array<int>({static_cast<int>(request.pass), static_cast<int>(options.layout),
                               static_cast<int>(options.schedule), options.links.ranks_per_node, options.plan.threads,
                               options.plan.deterministic ? 1 : 0}));
  return hash.value();
}

std::string list(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (const std::int64_t number : numbers) {
    text += (text.empty() ? "" : ", ") + std::to_string(number);
  }
  return text;
}

// The length of the whole sequence of which the ranks have these parts.
std::int64_t whole_length(const char* tokens, const std::vector<std::int64_t>& parts, SequenceLayout::Kind kind) {
  std::int64_t length = 0;
  for (const std::int64_t part : parts) {
    length += part;
  }
  const int ranks = static_cast<int>(parts.size());
  const SequenceLayout layout(kind, length, ranks);
  std::vector<std::int64_t> right;
  right.reserve(parts.size());
  for (int rank = 0; rank < ranks; ++rank) {
    right.push_back(layout.tokens(rank));
  }
  if (right != parts) {
    refuse(std::string(tokens) + " of the ranks", list(parts),
           list(right) + ", the " + std::string(layout_name(kind)) + " parts of " + std::to_string(length));
  }
  return length;
}

}  // namespace

RankGroup::RankGroup(std::unique_ptr<Communicator> communicator)
    : communicator_(std::make_unique<MemorySharing>(std::move(communicator))),
      rank_(communicator_->rank()),
      size_(communicator_->size()),
      transport_(communicator_->name()),
      device_(communicator_->device()) {}

bool RankGroup::closed() const {
  const std::scoped_lock lock(mutex_);
  return communicator_ == nullptr;
}

std::optional<std::string> RankGroup::failure() const {
  const std::scoped_lock lock(mutex_);
  return communicator_ ? communicator_->failure() : std::optional<std::string>("it was closed");
}

std::int64_t RankGroup::memory_bytes() const {
  const std::scoped_lock lock(mutex_);
  return communicator_ ? communicator_->memory_bytes() : 0;
}

Traffic RankGroup::traffic() const {
  const std::scoped_lock lock(mutex_);
  return communicator_ ? communicator_->traffic() : Traffic{};
}

MemorySharing& RankGroup::open() {
  if (!communicator_) {
    refuse("communicator", "closed", "one that is open");
  }
  return *communicator_;
}

std::vector<RankGroup::Statement> RankGroup::exchange(const Statement& mine) {
  std::vector<Statement> all;
  for (const auto& bytes : open().gather(std::as_bytes(std::span(&mine, 1)))) {
    std::memcpy(&all.emplace_back(), bytes.data(), sizeof(Statement));
  }
  return all;
}

void RankGroup::decline(const std::string& text) noexcept {
  try {
    const std::scoped_lock lock(mutex_);
    Statement mine;
    mine.declines = 1;
    std::copy_n(text.begin(), std::min(text.size(), mine.text.size() - 1), mine.text.begin());
    exchange(mine);
  } catch (const std::exception&) {  // the caller has an exception of its own
  }
}

RankGroup::Agreement RankGroup::agree(const Request& request) {
  const std::vector<Statement> all =
      exchange({hash_of(request), request.problem.seq_q, request.problem.seq_k, request.problem.dropout.seed, 0, {}});
  Agreement agreement{request.problem, {}};
  std::vector<std::int64_t> queries;
  std::vector<std::int64_t> keys;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].declines != 0) {
      throw Error(ErrorCode::peer, "rank " + std::to_string(rank) + " failed: " + all[rank].text.data());
    }
    queries.push_back(all[rank].queries);
    keys.push_back(all[rank].keys);
    const std::uint64_t seed = request.seed_of_rank_0 ? 0 : all[rank].seed;
    for (const std::uint64_t part : {all[rank].hash, static_cast<std::uint64_t>(all[rank].queries),
                                     static_cast<std::uint64_t>(all[rank].keys), seed}) {
      agreement.key.push_back(part);
    }
  }
  agreement.whole.seq_q = whole_length("queries", queries, request.options.layout);
  agreement.whole.seq_k = whole_length("keys", keys, request.options.layout);
  if (request.seed_of_rank_0) {
    agreement.whole.dropout.seed = all.front().seed;
    agreement.key.push_back(all.front().seed);
  }
  return agreement;
}

// Every rank finds a plan or none does: keys are the same everywhere, and so is the order of calls.
DistributedPlan& RankGroup::plan_for(const Request& request, const Agreement& agreement) {
  const auto found =
      std::find_if(plans_.begin(), plans_.end(), [&](const Entry& entry) { return entry.key == agreement.key; });
  if (found != plans_.end()) {
    plans_.splice(plans_.begin(), plans_, found);
    return plans_.front().plan;
  }
  // What no group could compute is refused before any communicator has heard of it.
  DistributedOptions alone = request.options;
  alone.links = {};
  distributed_facts(agreement.whole, request.pass, 1, alone);
  if (plans_.size() == kMostPlans) {
    plans_.pop_back();
  }
  open().next_plan();
  plans_.push_front({agreement.key, DistributedPlan::make(agreement.whole, request.pass, open(), request.options)});
  return plans_.front().plan;
}

template <class Tensors>
RankGroup::Result RankGroup::run_pass(const Request& request, const Tensors& tensors, void* stream) {
  const std::scoped_lock lock(mutex_);
  const Agreement agreement = agree(request);
  return {plan_for(request, agreement).run(tensors, stream), agreement.whole.dropout.seed};
}

RankGroup::Result RankGroup::run(const Request& request, const ForwardTensors& tensors, void* stream) {
  return run_pass(request, tensors, stream);
}

RankGroup::Result RankGroup::run(const Request& request, const BackwardTensors& tensors, void* stream) {
  return run_pass(request, tensors, stream);
}

std::vector<DistributedFacts> RankGroup::facts(const Request& request) {
  const std::scoped_lock lock(mutex_);
  return distributed_facts(agree(request).whole, request.pass, size_, request.options);
}

std::vector<std::vector<std::byte>> RankGroup::gather(std::span<const std::byte> mine) {
  const std::scoped_lock lock(mutex_);
  return open().gather(mine);
}

void RankGroup::abort(const std::string& reason) {
  const std::scoped_lock lock(mutex_);
  open().abort(std::runtime_error(reason));
}

void RankGroup::forget_plans() {
  const std::scoped_lock lock(mutex_);
  plans_.clear();
  if (communicator_) {
    communicator_->forget();
  }
}

void RankGroup::close() {
  const std::scoped_lock lock(mutex_);
  plans_.clear();
  communicator_.reset();
}

}  // namespace tessera::python
