#include "cuda/schedule.h"

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "core/fail.h"
#include "cuda/memory.h"

namespace tessera::internal {

namespace {

static_assert(sizeof(ListedVisit) == sizeof(ScheduleLists::Visit) &&
              offsetof(ListedVisit, bits) == offsetof(ScheduleLists::Visit, bits));

// Arrays one behind the other, each at a multiple of 16 bytes, so that kernels can read four words at once.
class Packer {
 public:
  template <class Value>
  std::size_t add(const std::vector<Value>& values) {
    const std::size_t offset = (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment;
    const std::size_t size = values.size() * sizeof(Value);
    bytes_.resize(offset + size);
    if (size > 0) {
      std::memcpy(bytes_.data() + offset, values.data(), size);
    }
    return offset;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kAlignment = 16;
  std::vector<std::byte> bytes_;
};

}  // namespace

struct ListedSchedule::State {
  DeviceMemory memory;
  Listed view;
  std::vector<std::int32_t> row_begin, column_begin;
  std::int64_t visits = 0;
  std::int64_t partial_visits = 0;
};

ListedSchedule::ListedSchedule(int device, const Problem& problem, std::int64_t tile_q, std::int64_t tile_k,
                               BitOrder order)
    : ListedSchedule(device, list_schedules(problem, tile_q, tile_k, order)) {}

ListedSchedule::ListedSchedule(int device, const ScheduleLists& lists) {
  Packer packer;
  const std::size_t row_begin = packer.add(lists.rows.begin);
  const std::size_t row_visits = packer.add(lists.rows.visits);
  const std::size_t column_begin = packer.add(lists.columns.begin);
  const std::size_t column_visits = packer.add(lists.columns.visits);
  const std::size_t bits = packer.add(lists.bits);

  auto state = std::make_unique<State>();
  state->memory = DeviceMemory(device, packer.bytes().size());
  state->memory.copy_from(packer.bytes().data(), packer.bytes().size());
  const auto* const g_base = static_cast<const std::byte*>(state->memory.data());
  const auto numbers = [&](std::size_t offset) { return reinterpret_cast<const std::int32_t*>(g_base + offset); };
  const auto visits = [&](std::size_t offset) { return reinterpret_cast<const ListedVisit*>(g_base + offset); };
  state->view = {{numbers(row_begin), visits(row_visits)},
                 {numbers(column_begin), visits(column_visits)},
                 reinterpret_cast<const std::uint32_t*>(g_base + bits),
                 lists.row_tiles,
                 lists.column_tiles,
                 lists.sequence_step,
                 lists.head_step};
  state->visits = static_cast<std::int64_t>(lists.rows.visits.size());
  state->partial_visits = lists.partial_visits;
  state->row_begin = lists.rows.begin;
  state->column_begin = lists.columns.begin;
  state_ = std::move(state);
}

ListedSchedule::~ListedSchedule() = default;

const Listed& ListedSchedule::view() const { return state_->view; }
std::int64_t ListedSchedule::visits() const { return state_->visits; }
std::int64_t ListedSchedule::partial_visits() const { return state_->partial_visits; }
std::int64_t ListedSchedule::row_visits(std::int64_t row) const {
  const auto n = static_cast<std::size_t>(row);
  return state_->row_begin[n + 1] - state_->row_begin[n];
}
std::int64_t ListedSchedule::column_visits(std::int64_t column) const {
  const auto n = static_cast<std::size_t>(column);
  return state_->column_begin[n + 1] - state_->column_begin[n];
}
std::size_t ListedSchedule::device_bytes() const { return state_->memory.bytes(); }

}  // namespace tessera::internal
