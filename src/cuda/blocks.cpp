#include "cuda/blocks.h"

#include <algorithm>
#include <array>

#include "core/fail.h"
#include "cuda/common/blocks.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/kernel.h"
#include "cuda/tensors.h"
#include "plan/rows.h"

namespace tessera::internal {

namespace {

constexpr int kThreads = 256;
// That are there at once: 40 registers a thread, to which the launch bounds hold sum_8 and merge_8. More would be a second, short wave.
constexpr int kBlocksOfProcessor = 6;
constexpr std::int64_t kMostItems = std::int64_t{1} << 30;
constexpr int kVector = 8;

static_assert(static_cast<int>(DType::float32) == 0 && static_cast<int>(DType::bfloat16) == 1);

// The axes of a view as kernels count them, missing ones in front.
BlockView block_view(const ConstTensorView& view) {
  BlockView block{const_cast<void*>(view.data), {}, static_cast<std::int32_t>(view.dtype)};
  for (int axis = 0; axis < view.rank; ++axis) {
    block.strides[kMaxRank - view.rank + axis] = view.strides[static_cast<std::size_t>(axis)];
  }
  return block;
}

std::array<std::int64_t, kMaxRank> shape_of(const ConstTensorView& view) {
  std::array<std::int64_t, kMaxRank> shape{1, 1, 1, 1};
  std::copy_n(view.shape.begin(), view.rank, shape.end() - view.rank);
  return shape;
}

// LSE [batch, heads, tokens] or [heads, tokens] by the axes of O: batch, tokens, heads.
BlockView lines_by_token(const ConstTensorView& lse) {
  BlockView block{const_cast<void*>(lse.data), {}, static_cast<std::int32_t>(lse.dtype)};
  const auto last = static_cast<std::size_t>(lse.rank - 1);
  block.strides[0] = lse.rank == 3 ? lse.strides[0] : 0;
  block.strides[1] = lse.strides[last];
  block.strides[2] = lse.strides[last - 1];
  return block;
}

bool vectors(const BlockView& view, const std::array<std::int64_t, kMaxRank>& shape) {
  bool fits = reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && (shape[3] <= 1 || view.strides[3] == 1);
  for (std::size_t axis = 0; axis < 3; ++axis) {
    fits = fits && (shape[axis] <= 1 || view.strides[axis] % kVector == 0);
  }
  return fits && shape[3] % kVector == 0;
}

void launch(int device, std::string_view image, const std::string& function, std::int64_t threads, const auto& params,
            void* stream) {
  const std::int64_t blocks = std::min<std::int64_t>(
      ceil_div(threads, kThreads), std::int64_t{kBlocksOfProcessor} * cuda_device(device).multiprocessors);
  Kernel::load(device, image, function).launch({blocks, kThreads, 0}, params, stream);
}

void advance_axis(BlockView& view, int axis, std::int64_t positions) {
  if (view.data != nullptr) {
    view.data = advance(view.data, static_cast<DType>(view.dtype), positions * view.strides[axis]);
  }
}

// Calls run(first, count) for parts of an axis, so that none has more than kMostItems.
void in_parts(std::int64_t items, std::int64_t extent, const auto& run) {
  if (items == 0) {
    return;
  }
  const std::int64_t part = std::max<std::int64_t>(1, extent / ceil_div(items, kMostItems));
  for (std::int64_t first = 0; first < extent; first += part) {
    run(first, std::min(part, extent - first));
  }
}

// Neighbouring axes that lie behind each other in all views become one: fewer divisions, and one dimension that is a multiple
// of eight.
void join_axes(BlockSum& sum) {
  std::array<BlockView*, BlockSum::kMostTerms + 1> views{&sum.target};
  for (int t = 0; t < sum.count; ++t) {
    views[static_cast<std::size_t>(t) + 1] = &sum.terms[t];
  }
  for (int inner = 3; inner > 0;) {
    const int outer = inner - 1;
    const bool joined = std::all_of(views.begin(), views.begin() + sum.count + 1, [&](const BlockView* view) {
      return sum.shape[outer] == 1 || view->strides[outer] == view->strides[inner] * sum.shape[inner];
    });
    if (!joined || sum.shape[inner] * sum.shape[outer] > kMostItems) {
      return;
    }
    sum.shape[inner] *= sum.shape[outer];
    for (int axis = outer; axis > 0; --axis) {
      sum.shape[axis] = sum.shape[axis - 1];
    }
    sum.shape[0] = 1;
    bool more = false;
    for (int axis = 0; axis < inner; ++axis) {
      more = more || sum.shape[axis] > 1;
    }
    for (BlockView* view : std::span(views).first(static_cast<std::size_t>(sum.count) + 1)) {
      for (int axis = outer; axis > 0; --axis) {
        view->strides[axis] = view->strides[axis - 1];
      }
      view->strides[0] = 0;
    }
    if (!more) {
      return;
    }
  }
}

}  // namespace

void device_sum(std::span<const ConstTensorView> terms, float value, const TensorView& target, void* stream) {
  const int device = target.device.index;
  const ContextScope context(device);
  BlockSum whole{};
  whole.target = block_view(target);
  for (std::size_t t = 0; t < terms.size(); ++t) {
    whole.terms[t] = block_view(terms[t]);
  }
  const auto shape = shape_of(target);
  std::copy(shape.begin(), shape.end(), whole.shape);
  whole.count = static_cast<std::int32_t>(terms.size());
  whole.value = value;
  join_axes(whole);
  const auto extents = std::to_array(whole.shape);
  bool wide = vectors(whole.target, extents);
  for (std::size_t t = 0; t < terms.size(); ++t) {
    wide = wide && vectors(whole.terms[t], extents);
  }
  // Any axis but the last can be cut; a tensor of one axis is never that long.
  const int axis = whole.shape[1] > 1 ? 1 : whole.shape[2] > 1 ? 2 : 0;
  in_parts(target.elements(), whole.shape[axis], [&](std::int64_t first, std::int64_t count) {
    BlockSum part = whole;
    part.shape[axis] = count;
    advance_axis(part.target, axis, first);
    for (BlockView& term : part.terms) {
      advance_axis(term, axis, first);
    }
    const std::int64_t items = part.shape[0] * part.shape[1] * part.shape[2] * part.shape[3];
    launch(device, "blocks", wide ? "sum_8" : "sum_1", wide ? items / kVector : items, part, stream);
  });
}

void require_merge_on_device(const ConstPartial& a, const ConstPartial& b, const Partial& result) {
  const int device = cuda_device(result.out.device.index).index;
  const ContextScope context(device);
  const auto require = [&](const std::string& name, const ConstPartial& partial) {
    require_on_device(name + ".out", partial.out, device);
    require_on_device(name + ".lse", partial.lse, device);
  };
  require("a", a);
  require("b", b);
  require("result", {result.out, result.lse});
}

void device_merge(std::span<const ConstPartial> terms, const Partial& result, void* stream) {
  const int device = result.out.device.index;
  const ContextScope context(device);
  BlockMerge whole{};
  const auto shape = shape_of(result.out);
  std::copy(shape.begin(), shape.end(), whole.shape);
  whole.out = block_view(result.out);
  whole.lse = lines_by_token(result.lse);
  whole.count = static_cast<std::int32_t>(terms.size());
  bool wide = vectors(whole.out, shape);
  for (std::size_t t = 0; t < terms.size(); ++t) {
    whole.outs[t] = block_view(terms[t].out);
    whole.lses[t] = lines_by_token(terms[t].lse);
    wide = wide && vectors(whole.outs[t], shape);
  }
  const std::int64_t lanes = wide ? 16 : 32;
  in_parts(shape[0] * shape[1] * shape[2] * lanes, shape[1], [&](std::int64_t first, std::int64_t count) {
    BlockMerge part = whole;
    part.shape[1] = count;
    advance_axis(part.out, 1, first);
    advance_axis(part.lse, 1, first);
    for (int t = 0; t < whole.count; ++t) {
      advance_axis(part.outs[t], 1, first);
      advance_axis(part.lses[t], 1, first);
    }
    launch(device, "merge", wide ? "merge_8" : "merge_1", shape[0] * count * shape[2] * lanes, part, stream);
  });
}

void device_noise(const TensorView& target, std::uint32_t seed, void* stream) {
  const ContextScope context(target.device.index);
  const BlockNoise params{{target.data, {}, static_cast<std::int32_t>(target.dtype)}, target.elements(), seed};
  if (params.count > 0) {
    launch(target.device.index, "blocks", "noise", params.count, params, stream);
  }
}

void device_negative_delta(const ConstTensorView& dout, const ConstTensorView& out, const ConstTensorView& dlse,
                           const TensorView& target, void* stream) {
  const int device = target.device.index;
  const ContextScope context(device);
  BlockDelta whole{};
  const auto shape = shape_of(dout);
  std::copy(shape.begin(), shape.end(), whole.shape);
  whole.dout = block_view(dout);
  whole.out = block_view(out);
  whole.target = lines_by_token(target);
  if (!dlse.absent()) {
    whole.dlse = lines_by_token(dlse);
  }
  const bool wide = vectors(whole.dout, shape) && vectors(whole.out, shape);
  const std::int64_t lanes = wide ? 16 : 32;
  in_parts(shape[0] * shape[1] * shape[2] * lanes, shape[1], [&](std::int64_t first, std::int64_t count) {
    BlockDelta part = whole;
    part.shape[1] = count;
    for (BlockView* view : {&part.dout, &part.out, &part.target, &part.dlse}) {
      advance_axis(*view, 1, first);
    }
    launch(device, "blocks", wide ? "delta_8" : "delta_1", shape[0] * count * shape[2] * lanes, part, stream);
  });
}

void device_add_per_head(const TensorView& lines, const ConstTensorView& numbers, std::int64_t first_sequence,
                         float factor, void* stream) {
  const int device = lines.device.index;
  const ContextScope context(device);
  BlockLines params{};
  params.lines = {lines.data, {lines.strides[0], lines.strides[1], lines.strides[2]}, 0};
  params.numbers = {const_cast<void*>(numbers.data), {0, numbers.strides[0]}, 0};
  if (numbers.rank == 2) {
    params.numbers = {const_cast<void*>(advance(numbers.data, numbers.dtype, first_sequence * numbers.strides[0])),
                      {numbers.strides[0], numbers.strides[1]},
                      0};
  }
  std::copy_n(lines.shape.begin(), 3, params.shape);
  params.factor = factor;
  if (lines.elements() > 0) {
    launch(device, "blocks", "add_to_lines", lines.elements(), params, stream);
  }
}

void device_sink_gradient(const ConstTensorView& sinks, const ConstTensorView& lse, const ConstTensorView& minus_delta,
                          const TensorView& dsinks, void* stream) {
  const int device = dsinks.device.index;
  const ContextScope context(device);
  BlockSinks params{};
  params.sinks = {const_cast<void*>(sinks.data), {sinks.strides[0]}, 0};
  params.dsinks = {dsinks.data, {dsinks.strides[0]}, 0};
  params.lse = {const_cast<void*>(lse.data), {lse.strides[0], lse.strides[1], lse.strides[2]}, 0};
  params.minus_delta = {
      const_cast<void*>(minus_delta.data), {minus_delta.strides[0], minus_delta.strides[1], minus_delta.strides[2]}, 0};
  std::copy_n(lse.shape.begin(), 3, params.shape);
  Kernel::load(device, "blocks", "sink_gradients").launch({lse.shape[1], kThreads, 0}, params, stream);
}

}  // namespace tessera::internal
