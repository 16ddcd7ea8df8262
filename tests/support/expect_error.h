// Expectations about tessera::Error: its code and what its message names.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "tessera/error.h"

namespace tessera::test {

// Runs `action` and expects an Error with `code` whose message holds every one of `parts`, for example the argument,
// the value that was given and what is accepted.
template <class Action>
void expect_error(ErrorCode code, std::initializer_list<std::string_view> parts, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    const std::string message = error.what();
    for (const std::string_view part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "no Error was thrown";
}

template <class Action>
void expect_invalid(std::initializer_list<std::string_view> parts, Action&& action) {
  expect_error(ErrorCode::invalid_argument, parts, action);
}

}  // namespace tessera::test
