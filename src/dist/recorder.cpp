#include "dist/recorder.h"

#include <algorithm>
#include <utility>

namespace tessera::internal {

namespace {

// Seconds covered by any of the intervals.
double covered(std::vector<TimelineEvent> events) {
  std::sort(events.begin(), events.end(),
            [](const TimelineEvent& a, const TimelineEvent& b) { return a.begin < b.begin; });
  double seconds = 0;
  double until = 0;
  for (const TimelineEvent& event : events) {
    seconds += std::max(0.0, event.end - std::max(event.begin, until));
    until = std::max(until, event.end);
  }
  return seconds;
}

}  // namespace

Recorder::Recorder(bool keep, const Communicator& communicator, void* stream)
    : keep_(keep), communicator_(communicator), stream_(stream), before_(communicator.traffic()), start_(mark()) {}

Mark Recorder::mark() const {
  const Device device = communicator_.device();
  if (device.kind == DeviceKind::cpu) {
    return {PendingTransfer::Clock::now(), nullptr};
  }
  auto event = std::make_shared<DeviceEvent>(device.index);
  event->record(stream_);
  return {{}, std::move(event)};
}

Mark Recorder::mark_of_wait() const { return counts_waits() ? mark() : Mark{}; }

bool Recorder::counts_waits() const { return keep_ || communicator_.device().kind == DeviceKind::cpu; }

void Recorder::computed(int step, int owner, const Mark& begin) {
  stretches_.push_back({{TimelineEvent::Kind::compute, step, owner, 0, 0, 0}, begin, mark()});
}

void Recorder::waited(int step, int owner, const Mark& begin) {
  if (counts_waits()) {
    stretches_.push_back({{TimelineEvent::Kind::wait, step, owner, 0, 0, 0}, begin, mark()});
  }
}

void Recorder::received(int step, int owner, std::int64_t bytes, const Mark& posted, std::vector<Transfer> messages) {
  receives_.push_back({{TimelineEvent::Kind::transfer, step, owner, 0, 0, bytes}, posted, std::move(messages)});
}

double Recorder::seconds_at(PendingTransfer::Clock::time_point time) const {
  const auto start = start_.event ? start_.event->time() : start_.time;
  return std::chrono::duration<double>(time - start).count();
}

double Recorder::seconds_at(const Mark& mark) const { return seconds_at(mark.event ? mark.event->time() : mark.time); }

RunReport Recorder::finish() {
  const Mark end = mark();
  if (end.event) {
    end.event->synchronize();
  }
  RunReport report;
  report.seconds = seconds_at(end);
  std::vector<TimelineEvent> receives;
  for (Receive& receive : receives_) {
    const auto started = receive.messages.front().started_at();
    receive.event.begin = std::max(0.0, started ? seconds_at(*started) : seconds_at(receive.posted));
    receive.event.end = std::max(receive.event.begin, seconds_at(receive.messages.back().finished_at()));
    receives.push_back(receive.event);
  }
  for (Stretch& stretch : stretches_) {
    stretch.event.begin = seconds_at(stretch.begin);
    stretch.event.end = seconds_at(stretch.end);
    const bool waits = stretch.event.kind == TimelineEvent::Kind::wait;
    (waits ? report.wait_seconds : report.compute_seconds) += stretch.event.end - stretch.event.begin;
    if (keep_) {
      report.timeline.push_back(stretch.event);
    }
  }
  if (keep_) {
    report.timeline.insert(report.timeline.end(), receives.begin(), receives.end());
  }
  if (end.event) {  // a stream stands still for more than its own waits: for a host that waits, too
    const double steps = seconds_at(steps_end_) - seconds_at(steps_begin_);
    report.wait_seconds = std::max(0.0, steps - report.compute_seconds);
  }
  report.transfer_seconds = covered(std::move(receives));
  const Traffic& after = communicator_.traffic();
  report.traffic = {after.bytes_sent - before_.bytes_sent, after.bytes_received - before_.bytes_received,
                    after.messages_sent - before_.messages_sent};
  return report;
}

}  // namespace tessera::internal
