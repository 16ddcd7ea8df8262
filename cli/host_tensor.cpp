#include "cli/host_tensor.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "core/fail.h"
#include "core/half.h"

namespace tessera::cli {

namespace {

constexpr std::align_val_t kAlignment{64};
// All bits set is a NaN in float16, bfloat16, float32 and float64.
constexpr unsigned char kPoison = 0xFF;

// In elements: before the first, after each row and after each head, and what every stride is a multiple of.
struct Gaps {
  std::int64_t start = 0;
  std::int64_t row = 0;
  std::int64_t head = 0;
  std::int64_t multiple = 1;
};

Gaps gaps_of(StrideKind kind, DType dtype) {
  if (kind == StrideKind::padded) {
    return {1, 3, 5, 1};  // odd, so that vectors straddle cache lines
  }
  if (kind == StrideKind::padded16) {
    const std::int64_t unit = 16 / dtype_bytes(dtype);
    return {unit, unit, 3 * unit, unit};
  }
  return {};
}

struct Layout {
  std::array<std::int64_t, kMaxRank> strides{};
  std::int64_t start = 0;
  std::int64_t elements = 0;  // from the start of the allocation to its end
};

Layout layout_of(std::span<const std::int64_t> shape, StrideKind kind, DType dtype) {
  const auto rank = static_cast<int>(shape.size());
  std::array<int, kMaxRank> order{0, 1, 2, 3};  // axes, outermost first
  if (kind == StrideKind::heads_first && rank >= 3) {
    std::swap(order[static_cast<std::size_t>(rank - 3)], order[static_cast<std::size_t>(rank - 2)]);
  }
  const Gaps gaps = gaps_of(kind, dtype);
  Layout layout;
  layout.start = gaps.start;
  std::int64_t stride = 1;
  for (int position = rank - 1; position >= 0; --position) {
    const auto axis = static_cast<std::size_t>(order[static_cast<std::size_t>(position)]);
    layout.strides[axis] = stride;
    stride = internal::checked_mul(stride, std::max<std::int64_t>(shape[axis], 1), "tensor elements");
    stride = internal::round_up(stride, gaps.multiple) + (position == rank - 1 ? gaps.row : gaps.head);
  }
  std::int64_t last = layout.start;
  bool empty = false;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    empty = empty || shape[axis] == 0;
    last += (shape[axis] - 1) * layout.strides[axis];
  }
  layout.elements = empty ? layout.start : last + 1;
  return layout;
}

// Calls visit(offset in elements) for every element in logical order.
template <class Visit>
void for_each_offset(const TensorView& view, Visit visit) {
  const std::int64_t count = view.absent() ? 0 : view.elements();
  std::array<std::int64_t, kMaxRank> index{};
  std::int64_t offset = 0;
  for (std::int64_t n = 0; n < count; ++n) {
    visit(offset);
    for (auto axis = static_cast<std::size_t>(view.rank); axis-- > 0;) {
      offset += view.strides[axis];
      if (++index[axis] < view.shape[axis]) {
        break;
      }
      offset -= view.shape[axis] * view.strides[axis];
      index[axis] = 0;
    }
  }
}

}  // namespace

std::string_view stride_kind_name(StrideKind kind) {
  switch (kind) {
    case StrideKind::packed:
      return "packed";
    case StrideKind::heads_first:
      return "heads-first";
    case StrideKind::padded:
      return "padded";
    case StrideKind::padded16:
      return "padded16";
  }
  return "";
}

void HostTensor::Free::operator()(std::byte* memory) const { ::operator delete[](memory, kAlignment); }

HostTensor::HostTensor(DType dtype, std::span<const std::int64_t> shape, StrideKind kind) {
  const Layout layout = layout_of(shape, kind, dtype);
  bytes_ = static_cast<std::size_t>(internal::checked_mul(layout.elements, dtype_bytes(dtype), "tensor bytes"));
  memory_.reset(static_cast<std::byte*>(::operator new[](bytes_, kAlignment)));
  view_ = TensorView(memory_.get() + layout.start * dtype_bytes(dtype), dtype, shape,
                     std::span(layout.strides).first(shape.size()));
  poison();
}

void HostTensor::poison() {
  if (bytes_ > 0) {
    std::memset(memory_.get(), kPoison, bytes_);
  }
}

void HostTensor::fill(const std::function<double()>& draw) {
  for_each_offset(view_,
                  [&](std::int64_t offset) { internal::store_element(view_.data, view_.dtype, offset, draw()); });
}

std::vector<double> HostTensor::values() const {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(absent() ? 0 : view_.elements()));
  for_each_offset(
      view_, [&](std::int64_t offset) { result.push_back(internal::load_element(view_.data, view_.dtype, offset)); });
  return result;
}

bool HostTensor::gaps_intact() const {
  const std::int64_t element_bytes = dtype_bytes(view_.dtype);
  const std::ptrdiff_t start = static_cast<std::byte*>(view_.data) - memory_.get();
  std::vector<bool> inside(bytes_, false);
  for_each_offset(view_, [&](std::int64_t offset) {
    std::fill_n(inside.begin() + start + offset * element_bytes, element_bytes, true);
  });
  for (std::size_t byte = 0; byte < bytes_; ++byte) {
    if (!inside[byte] && memory_[byte] != std::byte{kPoison}) {
      return false;
    }
  }
  return true;
}

HostTensor HostTensor::converted(DType dtype) const {
  if (absent()) {
    return {};
  }
  HostTensor result(dtype, std::span(view_.shape).first(static_cast<std::size_t>(view_.rank)));
  const std::vector<double> source = values();
  auto next = source.begin();
  result.fill([&] { return *next++; });
  return result;
}

ConstTensorView HostTensor::expanded(std::span<const std::int64_t> shape) const {
  ConstTensorView result = view_;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (view_.shape[axis] == 1 && shape[axis] != 1) {
      result.strides[axis] = 0;
    }
    result.shape[axis] = shape[axis];
  }
  return result;
}

}  // namespace tessera::cli
