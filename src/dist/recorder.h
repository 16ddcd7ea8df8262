// The clock and the account of one run: of the host's time on the CPU, of the stream's on a device.
#pragma once

#include <memory>
#include <vector>

#include "cuda/stream.h"
#include "tessera/communicator.h"
#include "tessera/distributed.h"

namespace tessera::internal {

// A point in time, or in the work of a stream.
struct Mark {
  PendingTransfer::Clock::time_point time;
  std::shared_ptr<DeviceEvent> event;
};

class Recorder {
 public:
  Recorder(bool keep, const Communicator& communicator, void* stream);

  Mark mark() const;
  // The begin of waited(). An event between two kernels costs a stream about two microseconds, and what a device waits for is
  // what it does not compute: without a timeline there are none.
  Mark mark_of_wait() const;
  void computed(int step, int owner, const Mark& begin);
  void waited(int step, int owner, const Mark& begin);
  // A receive that has been waited for. `posted` is when it was asked for.
  void received(int step, int owner, std::int64_t bytes, const Mark& posted, std::vector<Transfer> messages);
  // Around all of a pass but what comes before the first step and after the last.
  void begin_steps() { steps_begin_ = mark(); }
  void end_steps() { steps_end_ = mark(); }
  // Waits for the stream.
  RunReport finish();

 private:
  struct Stretch {
    TimelineEvent event;
    Mark begin, end;
  };
  struct Receive {
    TimelineEvent event;
    Mark posted;
    std::vector<Transfer> messages;
  };
  bool counts_waits() const;
  double seconds_at(PendingTransfer::Clock::time_point time) const;
  double seconds_at(const Mark& mark) const;

  bool keep_;
  const Communicator& communicator_;
  void* stream_;
  Traffic before_;
  Mark start_;
  Mark steps_begin_;
  Mark steps_end_;
  std::vector<Stretch> stretches_;
  std::vector<Receive> receives_;
};

}  // namespace tessera::internal
