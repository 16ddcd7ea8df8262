#include "plan/support.h"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>
#include <string>

#include "api/implementations.h"

namespace tessera {
namespace {

using internal::Impl;
using internal::SupportFeature;

const Impl& impl_named(std::string_view name) {
  for (const Impl* impl : internal::all_implementations()) {
    if (impl->name() == name) return *impl;
  }
  throw std::runtime_error("no Impl " + std::string(name));
}

// "feature, pass: reason" of everything that the Impl refuses.
std::set<std::string> refused(std::string_view name) {
  std::set<std::string> rows;
  for (const SupportFeature& feature : internal::support_features()) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      if (!feature.has(pass)) continue;
      if (internal::support_refusal(impl_named(name), feature, pass)) {
        rows.insert(std::string(feature.name) + ", " + std::string(pass_name(pass)));
      }
    }
  }
  return rows;
}

TEST(Support, EveryFeatureIsAValidProblemWithANameOfItsOwn) {
  std::set<std::string_view> names;
  for (const SupportFeature& feature : internal::support_features()) {
    EXPECT_NO_THROW(validate(feature.problem)) << feature.name;
    EXPECT_TRUE(feature.forward || feature.backward) << feature.name;
    EXPECT_TRUE(names.insert(feature.name).second) << feature.name;
  }
}

TEST(Support, TheCpuTakesEverythingButFloat64) {
  EXPECT_EQ(refused("flash"), (std::set<std::string>{"float64, forward", "float64, backward"}));
}

TEST(Support, TheOracleTakesEverythingButPartsOfTheKeys) {
  EXPECT_EQ(refused("reference"), (std::set<std::string>{"a part of the keys, as in a ring, backward"}));
}

// What the CPU takes some GPU Impl takes, with or without a device.
TEST(Support, GpusTakeWhatTheCpuTakes) {
  std::set<std::string> missing = refused("sm80");
  for (const std::string_view other : {"sm90", "decode"}) {
    const std::set<std::string> rows = refused(other);
    std::erase_if(missing, [&](const std::string& row) { return !rows.contains(row); });
  }
  if (missing.contains("bfloat16, forward")) {
    GTEST_SKIP() << "this build has no Impls for GPUs";
  }
  EXPECT_EQ(missing, refused("flash"));
}

}  // namespace
}  // namespace tessera
