#include "dist/tensor_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.h"
#include "cuda/blocks.h"

namespace tessera::internal {

namespace {

// Shapes with four axes, the missing ones in front.
struct Walk {
  explicit Walk(const ConstTensorView& view) {
    for (int axis = 0; axis < view.rank; ++axis) {
      const int own = kMaxRank - view.rank + axis;
      shape[static_cast<std::size_t>(own)] = view.shape[static_cast<std::size_t>(axis)];
    }
  }
  std::array<std::int64_t, kMaxRank> shape{1, 1, 1, 1};

  // body(index of the first element of a row along the last axis), as offsets of each of two views.
  template <class Body>
  void rows(const ConstTensorView& a, const ConstTensorView& b, const Body& body) const {
    const auto stride = [](const ConstTensorView& view, int axis) {
      const int own = axis - (kMaxRank - view.rank);
      return own < 0 ? 0 : view.strides[static_cast<std::size_t>(own)];
    };
    for (std::int64_t i = 0; i < shape[0]; ++i) {
      for (std::int64_t j = 0; j < shape[1]; ++j) {
        for (std::int64_t k = 0; k < shape[2]; ++k) {
          body(i * stride(a, 0) + j * stride(a, 1) + k * stride(a, 2),
               i * stride(b, 0) + j * stride(b, 1) + k * stride(b, 2));
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
  walk.rows(source, target, [&](std::int64_t from, std::int64_t to) {
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

void add_on_cpu(const ConstTensorView& source, const TensorView& target) {
  const Walk walk(target);
  const std::int64_t length = walk.row_length();
  const std::int64_t from_step = last_stride(source);
  const std::int64_t to_step = last_stride(target);
  const bool both_floats = source.dtype == DType::float32 && target.dtype == DType::float32;
  walk.rows(source, target, [&](std::int64_t from, std::int64_t to) {
    if (both_floats) {
      const float* in = floats(source) + from;
      float* out = floats(target) + to;
      for (std::int64_t n = 0; n < length; ++n) {
        out[n * to_step] += in[n * from_step];
      }
      return;
    }
    for (std::int64_t n = 0; n < length; ++n) {
      const std::int64_t at = to + n * to_step;
      store_element(
          target.data, target.dtype, at,
          load_element(target.data, target.dtype, at) + load_element(source.data, source.dtype, from + n * from_step));
    }
  });
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
  if (first->data != target.data) {
    convert_on_cpu(*first, target);
  }
  for (auto term = terms.begin(); term != terms.end(); ++term) {
    if (term != first) {
      add_on_cpu(*term, target);
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
  walk.rows(target, target, [&](std::int64_t row, std::int64_t /*same*/) {
    for (std::int64_t n = 0; n < walk.row_length(); ++n) {
      store_element(target.data, target.dtype, row + n * step, value);
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
        double sum = dlse.absent() ? 0.0 : static_cast<double>(floats(dlse)[line(dlse)]);
        for (std::int64_t n = 0; n < dim; ++n) {
          sum -=
              load_element(dout.data, dout.dtype, start(dout) + n) * load_element(out.data, out.dtype, start(out) + n);
        }
        floats(target)[line(target)] = static_cast<float>(sum);
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
