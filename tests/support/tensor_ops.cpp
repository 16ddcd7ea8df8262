#include "support/tensor_ops.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "cli/run_plan.h"
#include "core/half.h"

namespace tessera::test {

namespace {

template <class View>
View slice_of(View view, int axis, std::int64_t begin, std::int64_t count) {
  using Byte = std::conditional_t<std::is_same_v<View, TensorView>, char, const char>;
  const auto a = static_cast<std::size_t>(axis);
  view.data = static_cast<Byte*>(view.data) + begin * view.strides[a] * dtype_bytes(view.dtype);
  view.shape[a] = count;
  return view;
}

double norm(const Values& values) {
  double sum = 0;
  for (const double value : values) {
    sum += value * value;
  }
  return std::sqrt(sum);
}

}  // namespace

void assign(cli::HostTensor& tensor, const Values& values) {
  ASSERT_EQ(static_cast<std::int64_t>(values.size()), tensor.view().elements());
  std::size_t next = 0;
  tensor.fill([&] { return values[next++]; });
}

TensorView slice(TensorView view, int axis, std::int64_t begin, std::int64_t count) {
  return slice_of(view, axis, begin, count);
}

ConstTensorView slice(ConstTensorView view, int axis, std::int64_t begin, std::int64_t count) {
  return slice_of(view, axis, begin, count);
}

Values values_of(const ConstTensorView& view) {
  Values values;
  std::array<std::int64_t, kMaxRank> index{};
  for (std::int64_t n = 0; n < view.elements(); ++n) {
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < index.size(); ++axis) {
      offset += index[axis] * view.strides[axis];
    }
    values.push_back(internal::load_element(view.data, view.dtype, offset));
    for (auto axis = static_cast<std::size_t>(view.rank); axis-- > 0;) {
      if (++index[axis] < view.shape[axis]) {
        break;
      }
      index[axis] = 0;
    }
  }
  return values;
}

double relative_error(const Values& actual, const Values& expected) {
  if (actual.size() != expected.size()) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  Values difference(actual.size());
  for (std::size_t n = 0; n < actual.size(); ++n) {
    difference[n] = actual[n] == expected[n] ? 0.0 : actual[n] - expected[n];
  }
  Values finite = expected;
  for (double& value : finite) {
    value = std::isfinite(value) ? value : 0.0;
  }
  const double scale = norm(finite);
  return norm(difference) / (scale > 0 ? scale : 1.0);
}

bool bitwise_equal(const Values& a, const Values& b) {
  if (a.size() != b.size()) {
    return false;
  }
  for (std::size_t n = 0; n < a.size(); ++n) {
    const bool both_nan = std::isnan(a[n]) && std::isnan(b[n]);
    if (!both_nan && std::bit_cast<std::uint64_t>(a[n]) != std::bit_cast<std::uint64_t>(b[n])) {
      return false;
    }
  }
  return true;
}

Outputs outputs_of(const cli::ProblemTensors& tensors, Pass pass) {
  Outputs outputs;
  tensors.for_each_output(pass, [&](const std::string& name, const cli::HostTensor& tensor) {
    EXPECT_TRUE(tensor.gaps_intact()) << name << " was written outside its elements";
    outputs.push_back({name, tensor.values()});
  });
  return outputs;
}

bool bitwise_equal(const Outputs& a, const Outputs& b) {
  if (a.size() != b.size()) {
    return false;
  }
  for (std::size_t n = 0; n < a.size(); ++n) {
    if (a[n].name != b[n].name || !bitwise_equal(a[n].values, b[n].values)) {
      return false;
    }
  }
  return true;
}

Outputs run_pass(cli::ProblemTensors& tensors, const Plan& plan, const Device& device) {
  const bool forward = plan.pass() == Pass::forward;
  if (forward) {
    tensors.out.poison();
    tensors.lse.poison();
  } else {
    for (cli::HostTensor* output : {&tensors.dq, &tensors.dk, &tensors.dv, &tensors.dbias, &tensors.dsinks}) {
      output->poison();
    }
  }
  if (device.kind == DeviceKind::cuda) {
    cli::run_plan(plan, device, tensors);
  } else if (forward) {
    plan.run(tensors.forward());
  } else {
    plan.run(tensors.backward());
  }
  return outputs_of(tensors, plan.pass());
}

Outputs run_both(cli::ProblemTensors& tensors, const PlanOptions& options) {
  Outputs all = run_pass(tensors, Plan::make(tensors.problem(), Pass::forward, options), options.device);
  const Plan backward = Plan::make(tensors.problem(), Pass::backward, options);
  for (NamedValues& output : run_pass(tensors, backward, options.device)) {
    all.push_back(std::move(output));
  }
  return all;
}

}  // namespace tessera::test
