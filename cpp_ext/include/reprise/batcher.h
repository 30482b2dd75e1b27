// The dynamic batcher: a bounded queue that merges waiting jobs into batches.
//
// A pure data structure: no thread, no lock, no clock. The executor calls it under its own mutex
// and passes the time in, so every rule can be tested under a fake clock.
#ifndef REPRISE_BATCHER_H_
#define REPRISE_BATCHER_H_

#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "reprise/tensor.h"

namespace reprise {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using RequestId = std::uint64_t;

// One validated request. `inputs` stand in the device's order and stay valid as long as
// `keep_alive` lives.
struct Job {
  RequestId id = 0;
  std::vector<TensorView> inputs;
  std::int64_t items = 1;  // rows along the batch dimension
  TimePoint enqueued_at;
  std::optional<TimePoint> deadline;  // latest start
  bool runs_alone = false;            // was in a batch that failed; never merged again
  std::shared_ptr<void> keep_alive;
};

struct BatcherOptions {
  std::int64_t max_batch_size = 1;  // in items; 1 means that jobs are never merged
  std::chrono::microseconds max_queue_delay{0};
  std::size_t queue_limit = 1024;  // in jobs
};

class Batcher {
 public:
  explicit Batcher(const BatcherOptions& options) : options_(options) {}

  // Takes ownership of the job. Throws kQueueFull, and the job is gone.
  void Push(Job job);

  // Puts the jobs of a failed batch back in front, each to run alone, so that one poisonous request
  // cannot fail its neighbours. May pass the queue's limit: the jobs were admitted before.
  void PushFrontAlone(std::vector<Job> jobs);

  // The job, if it is still queued.
  std::optional<Job> Remove(RequestId id);

  // Jobs whose deadline is at or before `now`.
  std::vector<Job> TakeExpired(TimePoint now);

  // The next batch, or nothing if it is better to wait. The oldest job leads. Jobs that arrived
  // later join it in order while their trailing shapes are the same and the sum of items stays
  // within max_batch_size. A batch that could still grow waits until its oldest job is
  // max_queue_delay old, or has used half of the time to its deadline.
  std::vector<Job> TakeReady(TimePoint now);

  std::vector<Job> TakeAll();

  std::optional<TimePoint> NextDeadline() const;
  // When TakeReady stops waiting; nothing on an empty queue.
  std::optional<TimePoint> NextRelease() const;

  std::size_t size() const { return jobs_.size(); }

 private:
  using Position = std::list<Job>::iterator;

  struct Candidate {
    std::vector<Position> positions;
    bool is_closed = false;  // nothing that arrives later may join
  };

  Candidate Collect();
  Job Take(Position position);
  void Index(Position position);

  const BatcherOptions options_;
  std::list<Job> jobs_;  // oldest first
  std::unordered_map<RequestId, Position> by_id_;
  std::set<std::pair<TimePoint, RequestId>> deadlines_;
};

}  // namespace reprise

#endif  // REPRISE_BATCHER_H_
