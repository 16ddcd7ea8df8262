#include "dist/tensor_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.h"
#include "cuda/blocks.h"
#include "cuda/common/blocks.h"

namespace tessera::internal {

namespace {

static_assert(kMostTerms == BlockSum::kMostTerms && kMostTerms == BlockMerge::kMostTerms);

// Shapes with four axes, the missing ones in front.
struct Walk {
  explicit Walk(const ConstTensorView& view) {
    for (int axis = 0; axis < view.rank; ++axis) {
      const int own = kMaxRank - view.rank + axis;
      shape[static_cast<std::size_t>(own)] = view.shape[static_cast<std::size_t>(axis)];
    }
  }
  std::array<std::int64_t, kMaxRank> shape{1, 1, 1, 1};

  // body(where each view has the first element of a row along the last axis).
  template <std::size_t kViews, class Body>
  void rows(const std::array<ConstTensorView, kViews>& views, const Body& body) const {
    std::array<std::array<std::int64_t, 3>, kViews> strides{};
    for (std::size_t n = 0; n < kViews; ++n) {
      for (int axis = kMaxRank - views[n].rank; axis < kMaxRank - 1; ++axis) {
        strides[n][static_cast<std::size_t>(axis)] =
            views[n].strides[static_cast<std::size_t>(axis - (kMaxRank - views[n].rank))];
      }
    }
    std::array<std::int64_t, kViews> at{};
    for (std::int64_t i = 0; i < shape[0]; ++i) {
      for (std::int64_t j = 0; j < shape[1]; ++j) {
        for (std::int64_t k = 0; k < shape[2]; ++k) {
          for (std::size_t n = 0; n < kViews; ++n) {
            at[n] = i * strides[n][0] + j * strides[n][1] + k * strides[n][2];
          }
          body(at);
        }
      }
    }
  }
  std::int64_t row_length() const { return shape[kMaxRank - 1]; }
};

std::int64_t last_stride(const ConstTensorView& view) { return view.strides[static_cast<std::size_t>(view.rank - 1)]; }

const float* floats(const ConstTensorView& view) { return static_cast<const float*>(view.data); }
float* floats(const TensorView& view) { return static_cast<float*>(view.data); }

bool on_device(const ConstTensorView& view) { return view.device.kind == DeviceKind::cuda; }

void convert_on_cpu(const ConstTensorView& source, const TensorView& target) {
  const Walk walk(target);
  const std::int64_t length = walk.row_length();
  const std::int64_t from_step = last_stride(source);
  const std::int64_t to_step = last_stride(target);
  const bool bytes_alone = source.dtype == target.dtype && (length < 2 || (from_step == 1 && to_step == 1));
  walk.rows(std::array<ConstTensorView, 2>{source, target}, [&](const auto& at) {
    const auto [from, to] = at;
    if (bytes_alone) {
      if (length > 0) {
        std::memcpy(advance(target.data, target.dtype, to), advance(source.data, source.dtype, from),
                    static_cast<std::size_t>(length * dtype_bytes(target.dtype)));
      }
      return;
    }
    for (std::int64_t n = 0; n < length; ++n) {
      store_element(target.data, target.dtype, to + n * to_step,
                    load_element(source.data, source.dtype, from + n * from_step));
    }
  });
}

// target = a + b; the target may be either.
void add_on_cpu(const ConstTensorView& a, const ConstTensorView& b, const TensorView& target) {
  const Walk walk(target);
  const std::int64_t length = walk.row_length();
  const std::array<ConstTensorView, 3> views{a, b, target};
  const bool floats_without_gaps = std::all_of(views.begin(), views.end(), [](const ConstTensorView& view) {
    return view.dtype == DType::float32 && last_stride(view) == 1;
  });
  walk.rows(views, [&](const auto& at) {
    if (floats_without_gaps) {
      const float* x = floats(a) + at[0];
      const float* y = floats(b) + at[1];
      float* out = floats(target) + at[2];
      for (std::int64_t n = 0; n < length; ++n) {
        out[n] = x[n] + y[n];
      }
      return;
    }
    for (std::int64_t n = 0; n < length; ++n) {
      const double sum = load_element(a.data, a.dtype, at[0] + n * last_stride(a)) +
                         load_element(b.data, b.dtype, at[1] + n * last_stride(b));
      store_element(target.data, target.dtype, at[2] + n * last_stride(target), sum);
    }
  });
}

// Of two rows of numbers, in double precision.
double dot(const ConstTensorView& a, std::int64_t at_a, const ConstTensorView& b, std::int64_t at_b,
           std::int64_t count) {
  std::array<double, 4> sums{};  // the latency of one addition would bind
  std::int64_t n = 0;
  if (a.dtype == DType::float32 && b.dtype == DType::float32) {
    const float* x = floats(a) + at_a;
    const float* y = floats(b) + at_b;
    for (; n + 4 <= count; n += 4) {
      for (std::size_t lane = 0; lane < sums.size(); ++lane) {
        sums[lane] += static_cast<double>(x[n + static_cast<std::int64_t>(lane)]) *
                      static_cast<double>(y[n + static_cast<std::int64_t>(lane)]);
      }
    }
  }
  for (; n < count; ++n) {
    sums[0] += load_element(a.data, a.dtype, at_a + n) * load_element(b.data, b.dtype, at_b + n);
  }
  return sums[0] + sums[1] + (sums[2] + sums[3]);
}

// O of [batch, tokens, heads, dim] or [total, heads, dim] alone, with its LSE.
void copy_partial(const ConstPartial& source, const Partial& target) {
  convert_on_cpu(source.out, target.out);
  convert_on_cpu(source.lse, target.lse);
}

}  // namespace

void sum(std::span<const ConstTensorView> terms, const TensorView& target, void* stream) {
  if (on_device(target)) {
    device_sum(terms, 0, target, stream);
    return;
  }
  // Terms before the target would be lost, were it not first: addition does not mind the order of two.
  const auto own =
      std::find_if(terms.begin(), terms.end(), [&](const ConstTensorView& term) { return term.data == target.data; });
  const auto first = own == terms.end() ? terms.begin() : own;
  if (terms.size() == 1 && first->data != target.data) {
    convert_on_cpu(*first, target);
  }
  ConstTensorView before = *first;
  for (auto term = terms.begin(); term != terms.end(); ++term) {
    if (term != first) {
      add_on_cpu(before, *term, target);
      before = target;
    }
  }
}

void merge_all(std::span<const ConstPartial> terms, const Partial& result, int threads, void* stream) {
  if (on_device(result.out)) {
    device_merge(terms, result, stream);
    return;
  }
  ConstPartial before = terms.front();
  for (const ConstPartial& term : terms.subspan(1)) {
    merge(before, term, result, threads);
    before = {result.out, result.lse};
  }
  if (terms.size() == 1 && before.out.data != result.out.data) {
    copy_partial(before, result);
  }
}

void fill(const TensorView& target, float value, void* stream) {
  if (on_device(target)) {
    device_sum({}, value, target, stream);
    return;
  }
  const Walk walk(target);
  const std::int64_t step = last_stride(target);
  walk.rows(std::array<ConstTensorView, 1>{target}, [&](const auto& row) {
    for (std::int64_t n = 0; n < walk.row_length(); ++n) {
      store_element(target.data, target.dtype, row[0] + n * step, value);
    }
  });
}

void negative_delta(const ConstTensorView& dout, const ConstTensorView& out, const ConstTensorView& dlse,
                    const TensorView& target, void* stream) {
  if (on_device(target)) {
    device_negative_delta(dout, out, dlse, target, stream);
    return;
  }
  const std::int64_t dim = dout.shape[3];
  for (std::int64_t b = 0; b < dout.shape[0]; ++b) {
    for (std::int64_t i = 0; i < dout.shape[1]; ++i) {
      for (std::int64_t h = 0; h < dout.shape[2]; ++h) {
        const auto start = [&](const ConstTensorView& view) {
          return b * view.strides[0] + i * view.strides[1] + h * view.strides[2];
        };
        const auto line = [&](const ConstTensorView& view) {
          return b * view.strides[0] + h * view.strides[1] + i * view.strides[2];
        };
        const double of_lse = dlse.absent() ? 0.0 : static_cast<double>(floats(dlse)[line(dlse)]);
        floats(target)[line(target)] = static_cast<float>(of_lse - dot(dout, start(dout), out, start(out), dim));
      }
    }
  }
}

void add_per_head(const TensorView& lines, const ConstTensorView& slopes, std::int64_t first_sequence, float factor,
                  void* stream) {
  if (on_device(lines)) {
    device_add_per_head(lines, slopes, first_sequence, factor, stream);
    return;
  }
  for (std::int64_t b = 0; b < lines.shape[0]; ++b) {
    for (std::int64_t h = 0; h < lines.shape[1]; ++h) {
      const std::int64_t at =
          slopes.rank == 2 ? (first_sequence + b) * slopes.strides[0] + h * slopes.strides[1] : h * slopes.strides[0];
      const float amount = factor * floats(slopes)[at];
      float* line = floats(lines) + b * lines.strides[0] + h * lines.strides[1];
      for (std::int64_t i = 0; i < lines.shape[2]; ++i) {
        line[i * lines.strides[2]] += amount;
      }
    }
  }
}

void sink_gradient(const ConstTensorView& sinks, const ConstTensorView& lse, const ConstTensorView& minus_delta,
                   const TensorView& dsinks, void* stream) {
  if (on_device(dsinks)) {
    device_sink_gradient(sinks, lse, minus_delta, dsinks, stream);
    return;
  }
  for (std::int64_t h = 0; h < lse.shape[1]; ++h) {
    const double sink = floats(sinks)[h * sinks.strides[0]];
    double gradient = 0;
    for (std::int64_t b = 0; b < lse.shape[0]; ++b) {
      for (std::int64_t i = 0; i < lse.shape[2]; ++i) {
        const float row = floats(lse)[b * lse.strides[0] + h * lse.strides[1] + i * lse.strides[2]];
        if (row != -std::numeric_limits<float>::infinity()) {
          gradient +=
              std::exp(sink - static_cast<double>(row)) *
              static_cast<double>(floats(
                  minus_delta)[b * minus_delta.strides[0] + h * minus_delta.strides[1] + i * minus_delta.strides[2]]);
        }
      }
    }
    floats(dsinks)[h * dsinks.strides[0]] = static_cast<float>(gradient);
  }
}

}  // namespace tessera::internal
