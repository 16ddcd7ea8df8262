#include "cuda/tensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "core/fail.h"
#include "cuda/common/fill.h"
#include "cuda/common/tables.h"
#include "cuda/driver.h"
#include "cuda/kernel.h"
#include "cuda/schedule.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kAlignment = 16;

// The axes of a tensor as the copy engine counts them: tokens, heads, batch.
struct Axes {
  std::int64_t tokens, heads, batch;
  Strides strides;
};

Axes axes_of(const ConstTensorView& view) {
  const std::size_t first = view.rank == 3 ? 0 : 1;
  Axes axes{view.shape[first], view.shape[first + 1], view.rank == 3 ? 1 : view.shape[0], {}};
  axes.strides = {view.rank == 3 ? 0 : view.strides[0], view.strides[first], view.strides[first + 1]};
  return axes;
}

// Where an axis has one position its stride is never used, and frameworks put anything there.
std::int64_t used_stride(std::int64_t extent, std::int64_t stride) { return extent > 1 ? stride : 0; }

}  // namespace

void require_on_device(std::string_view name, const ConstTensorView& view, int device) {
  if (view.elements() == 0) {
    return;
  }
  unsigned type = 0;
  int ordinal = -1;
  CUpointer_attribute wanted[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL};
  void* values[] = {&type, &ordinal};
  check(driver().pointer_attributes(2, wanted, values, reinterpret_cast<CUdeviceptr>(view.data)),
        "cuPointerGetAttributes");
  if (type != CU_MEMORYTYPE_DEVICE && type != CU_MEMORYTYPE_UNIFIED) {
    fail_argument(std::string(name) + " data", "a pointer to host memory", "memory of cuda:" + std::to_string(device));
  }
  if (ordinal != device) {
    fail_argument(std::string(name) + " data", "memory of cuda:" + std::to_string(ordinal),
                  "memory of cuda:" + std::to_string(device));
  }
}

void require_copyable(std::string_view name, const ConstTensorView& view, int device) {
  require_on_device(name, view, device);
  if (view.elements() == 0) {
    return;
  }
  const std::int64_t element = dtype_bytes(view.dtype);
  for (int axis = 0; axis + 1 < view.rank; ++axis) {
    const auto index = static_cast<std::size_t>(axis);
    const std::int64_t bytes = view.strides[index] * element;
    if (view.shape[index] > 1 && (bytes % kAlignment != 0 || bytes < 0 || bytes >= std::int64_t{1} << 40)) {
      fail_argument(std::string(name) + " stride " + std::to_string(axis),
                    std::to_string(view.strides[index]) + " elements (" + std::to_string(bytes) + " bytes)",
                    "multiples of 16 bytes from 0 to 2^40");
    }
  }
  if (const auto excess = reinterpret_cast<std::uintptr_t>(view.data) % kAlignment; excess != 0) {
    fail_argument(std::string(name) + " data", "an address " + std::to_string(excess) + " bytes past alignment",
                  "addresses that are multiples of 16 bytes");
  }
}

TensorMap tensor_map(const ConstTensorView& view, int box_rows) {
  const Axes axes = axes_of(view);
  const auto element = static_cast<cuuint64_t>(dtype_bytes(view.dtype));
  const auto dim = static_cast<cuuint64_t>(view.shape[static_cast<std::size_t>(view.rank - 1)]);
  const auto bytes = [&](std::int64_t extent, std::int64_t stride) {
    // Any valid stride does where it is not used.
    return extent > 1 ? static_cast<cuuint64_t>(stride) * element : static_cast<cuuint64_t>(kAlignment);
  };
  const cuuint64_t extents[] = {dim, static_cast<cuuint64_t>(axes.tokens), static_cast<cuuint64_t>(axes.heads),
                                static_cast<cuuint64_t>(axes.batch)};
  const cuuint64_t strides[] = {bytes(axes.tokens, axes.strides.token), bytes(axes.heads, axes.strides.head),
                                bytes(axes.batch, axes.strides.batch)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  CUtensorMap encoded;
  check(
      driver().encode_tensor_map(
          &encoded, view.dtype == DType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
          4, const_cast<void*>(view.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
          CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "cuTensorMapEncodeTiled");
  TensorMap map;
  static_assert(sizeof map == sizeof encoded);
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

RowSource row_source(const ConstTensorView& view) {
  const std::int64_t element = dtype_bytes(view.dtype);
  const Strides strides = strides_of(view);
  RowSource source{view.data,
                   strides.batch * element,
                   strides.token * element,
                   strides.head * element,
                   static_cast<std::int32_t>(view.shape[static_cast<std::size_t>(view.rank - 1)] * element),
                   static_cast<std::int32_t>(kAlignment)};
  // Two's complement: a negative stride has the alignment of its magnitude.
  const auto together = reinterpret_cast<std::uintptr_t>(view.data) | static_cast<std::uintptr_t>(source.batch_stride) |
                        static_cast<std::uintptr_t>(source.token_stride) |
                        static_cast<std::uintptr_t>(source.head_stride);
  while (together % static_cast<std::uintptr_t>(source.piece_bytes) != 0) {
    source.piece_bytes /= 2;
  }
  return source;
}

Strides strides_of(const ConstTensorView& view) {
  const Axes axes = axes_of(view);
  return {used_stride(axes.batch, axes.strides.batch), used_stride(axes.tokens, axes.strides.token),
          used_stride(axes.heads, axes.strides.head)};
}

Strides lse_strides_of(const ConstTensorView& view) {
  if (view.absent()) {
    return {};
  }
  if (view.rank == 2) {
    return {0, used_stride(view.shape[1], view.strides[1]), used_stride(view.shape[0], view.strides[0])};
  }
  return {used_stride(view.shape[0], view.strides[0]), used_stride(view.shape[2], view.strides[2]),
          used_stride(view.shape[1], view.strides[1])};
}

void write_table(int device, void* g_target, const void* words, std::int64_t count, void* stream) {
  const Kernel& kernel = Kernel::load(device, "tables", "write_words");
  constexpr int kThreads = 256;
  for (std::int64_t first = 0; first < count; first += WordBatch::kMost) {
    WordBatch batch{};
    batch.target = static_cast<std::int32_t*>(g_target) + first;
    batch.count = static_cast<std::int32_t>(std::min<std::int64_t>(count - first, WordBatch::kMost));
    std::memcpy(batch.words, static_cast<const std::int32_t*>(words) + first,
                static_cast<std::size_t>(batch.count) * sizeof(std::int32_t));
    kernel.launch({ceil_div(batch.count, kThreads), kThreads, 0}, batch, stream);
  }
}

void write_table(int device, SequenceEntry* g_target, const SequenceTable& table, void* stream) {
  constexpr std::size_t kWords = sizeof(SequenceEntry) / sizeof(std::int32_t);
  write_table(device, g_target, table.entries.data(), static_cast<std::int64_t>(table.entries.size() * kWords), stream);
}

namespace {

void fill(int device, FillRows rows, void* stream) {
  constexpr int kThreads = 256;
  constexpr std::int64_t kMostBlocks = 4096;
  if (rows.rows * rows.words > 0) {
    Kernel::load(device, "fill", "fill_rows")
        .launch({std::min(ceil_div(rows.rows * rows.words, kThreads), kMostBlocks), kThreads, 0}, rows, stream);
  }
}

}  // namespace

void fill_tokens(int device, const TensorView& view, void* stream) {
  const Axes axes = axes_of(view);
  const std::int64_t in_word = 4 / dtype_bytes(view.dtype);
  const auto words = [&](std::int64_t elements) { return elements / in_word; };
  fill(device,
       {static_cast<std::uint32_t*>(view.data),
        {words(axes.strides.batch), words(axes.strides.token), words(axes.strides.head)},
        axes.batch * axes.tokens * axes.heads,
        axes.tokens,
        static_cast<std::int32_t>(axes.heads),
        static_cast<std::int32_t>(words(view.shape[static_cast<std::size_t>(view.rank - 1)])),
        0},
       stream);
}

void fill_lse(int device, const TensorView& view, float value, void* stream) {
  const std::size_t first = view.rank == 2 ? 0 : 1;
  FillRows rows{};
  rows.target = static_cast<std::uint32_t*>(view.data);
  rows.strides = lse_strides_of(view);
  rows.tokens = view.shape[first + 1];
  rows.heads = static_cast<std::int32_t>(view.shape[first]);
  rows.rows = view.elements();
  rows.words = 1;
  std::memcpy(&rows.value, &value, sizeof value);
  fill(device, rows, stream);
}

SequenceTable sequence_table(const Problem& problem, bool tiles_of_queries, std::int64_t tile, std::int64_t line) {
  SequenceTable table;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan span = problem.sequence(b);
    const bool ragged = problem.ragged();
    const std::int64_t stored_keys = ragged ? problem.cu_seqlens_k[static_cast<std::size_t>(b) + 1] -
                                                  problem.cu_seqlens_k[static_cast<std::size_t>(b)]
                                            : problem.seq_k;
    const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    table.entries.push_back({narrow(ragged ? span.query_row : 0), narrow(ragged ? span.key_row : 0),
                             narrow(span.queries), narrow(span.keys), narrow(stored_keys), narrow(table.tiles),
                             narrow(table.line)});
    table.tiles += ceil_div(tiles_of_queries ? span.queries : stored_keys, tile);
    table.line += round_up(span.queries, line);
  }
  return table;
}

Band band_of(const Mask& mask) {
  constexpr std::int64_t kFar = std::int64_t{1} << 29;  // beyond every sequence, and sums of two stay in 32 bits
  const Alignment& alignment = mask.alignment();
  const bool bottom_right = alignment.kind == Alignment::Kind::bottom_right;
  const std::int64_t diagonal = bottom_right ? 0 : alignment.resolve(0, 0);
  const auto side = [&](std::int64_t distance, int sign) {
    if (distance == Mask::kUnlimited) {
      return sign * kFar;
    }
    const bool overflows = sign > 0 ? diagonal > Mask::kUnlimited - distance : diagonal < -Mask::kUnlimited + distance;
    return overflows ? sign * kFar : std::clamp(diagonal + sign * distance, -kFar, kFar);
  };
  return {static_cast<std::int32_t>(side(mask.left(), -1)), static_cast<std::int32_t>(side(mask.right(), 1)),
          bottom_right ? 1 : 0};
}

MaskKind mask_kind(const Mask& mask) {
  return needs_lists(mask)                  ? MaskKind::listed
         : mask.left() != Mask::kUnlimited  ? MaskKind::window
         : mask.right() != Mask::kUnlimited ? MaskKind::causal
                                            : MaskKind::dense;
}

std::string_view mask_kind_name(MaskKind kind) {
  constexpr std::array<std::string_view, 4> kNames{"dense", "causal", "window", "listed"};
  return kNames[static_cast<std::size_t>(kind)];
}

}  // namespace tessera::internal
