// The interface between plans and implementations.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tessera/plan.h"

namespace tessera::internal {

// A problem made ready to run: every decision is taken. run() allocates nothing and may be called from several threads.
class Executable {
 public:
  Executable() = default;
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;
  virtual ~Executable() = default;

  // isa, threads, tile_q, tile_k and workspace_bytes are filled in; the plan adds the rest.
  virtual PlanFacts facts() const = 0;
  // `workspace` has facts().workspace_bytes bytes, aligned to kWorkspaceAlignment. The tensors are valid.
  // An executable is prepared for one pass; the plan calls the other one's run() never.
  virtual void run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* stream) const;
  virtual void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const;

  // Memory for a run whose caller gives no workspace; on a GPU both are ordered by the stream. Never null for bytes > 0.
  virtual std::byte* allocate_workspace(std::size_t bytes, void* stream) const;
  virtual void release_workspace(std::byte* memory, void* stream) const noexcept;
};

// One implementation. Instances live as long as the program.
class Impl {
 public:
  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  virtual ~Impl() = default;

  virtual std::string_view name() const = 0;
  virtual std::string_view summary() const = 0;
  // Why this machine or build does not have it; nullopt when it does.
  virtual std::optional<std::string> unavailable() const { return std::nullopt; }
  // What it runs on.
  virtual DeviceKind device() const { return DeviceKind::cpu; }
  // Why it does not take this problem, by the name of the field, on whatever machine and in whatever build; nullopt when it does.
  // Neither the device nor the kernels of this build are asked. Never called for a problem that is not valid.
  virtual std::optional<std::string> refuses(const Problem& problem, Pass pass, const PlanOptions& options) const = 0;
  // What the device or this build lacks for a problem that is not refused; nullopt when nothing.
  virtual std::optional<std::string> lacks(const Problem& /*problem*/, Pass /*pass*/,
                                           const PlanOptions& /*options*/) const {
    return std::nullopt;
  }
  // Why it takes no tensors whose rows are not multiples of 16 bytes apart, which a plan does not know; nullopt when it does.
  virtual std::optional<std::string> refuses_odd_strides() const { return std::nullopt; }
  // The problem must not be refused.
  virtual std::unique_ptr<const Executable> prepare(const Problem& problem, Pass pass,
                                                    const PlanOptions& options) const = 0;
};

struct Selection {
  std::unique_ptr<const Executable> executable;
  PlanFacts facts;
};

// The first of `impls` that accepts, or the one that options.impl names.
Selection select(std::span<const Impl* const> impls, const Problem& problem, Pass pass, const PlanOptions& options);

}  // namespace tessera::internal
