// The executor: bounded queue -> dynamic batcher -> lanes -> completions.
#ifndef REPRISE_EXECUTOR_H_
#define REPRISE_EXECUTOR_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "reprise/batcher.h"
#include "reprise/completion_queue.h"
#include "reprise/lane.h"

namespace reprise {

using ExecutorOptions = BatcherOptions;

// What a caller hands in. The memory behind `inputs` must stay valid and unchanged as long as
// `keep_alive` lives; the executor lets go of it in the Completion.
struct Request {
  std::vector<NamedTensorView> inputs;
  std::optional<std::chrono::nanoseconds> deadline;  // from now; bounds the wait in the queue
  std::shared_ptr<void> keep_alive;
};

struct ExecutorStats {
  std::size_t queued_count = 0;   // requests waiting now
  std::size_t running_count = 0;  // requests on lanes now
  std::size_t lane_count = 0;
  std::uint64_t completed_count = 0;    // with outputs
  std::uint64_t failed_count = 0;       // the device failed
  std::uint64_t cancelled_count = 0;    // left the queue by Cancel
  std::uint64_t expired_count = 0;      // left the queue by deadline
  std::uint64_t rejected_count = 0;     // queue full
  std::uint64_t batch_count = 0;        // engine calls
  std::uint64_t item_count = 0;         // rows in those calls
  std::int64_t largest_batch_size = 0;  // in items
  std::uint64_t wakeup_count = 0;       // writes to the completion descriptor
};

// Every public method may be called from any thread, but for Drain: one thread drains.
// Each request that Submit accepted comes out of Drain exactly once.
class Executor {
 public:
  // Throws kInvalidInput for options that cannot work with this device.
  Executor(std::unique_ptr<Device> device, const ExecutorOptions& options);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Never blocks. Throws kInvalidInput (naming the input), kQueueFull or kShutdown; then the
  // request was not accepted and `request.keep_alive` is released on the calling thread.
  RequestId Submit(Request request);

  // True if the request was still queued: it completes with kCancelled. One that runs is not
  // stopped.
  bool Cancel(RequestId id);

  std::vector<Completion> Drain() { return completions_.Drain(); }
  int completion_fd() const { return completions_.fd(); }

  // Fails what is queued with kShutdown, waits for the running batches and joins. Idempotent.
  void Close();

  ExecutorStats stats() const;
  const Device& device() const { return *device_; }

 private:
  struct Slot {
    std::unique_ptr<Lane> lane;
    // Of the running batch; empty when idle. Its lane reads it without the mutex, and nobody writes
    // it until the lane has called `done`.
    std::vector<Job> jobs;
  };

  Job Validate(Request request) const;
  std::int64_t ValidateItems(const std::vector<TensorView>& inputs) const;
  void DispatchLoop();
  void WaitForWork(std::unique_lock<std::mutex>& lock);
  void StartBatch(std::unique_lock<std::mutex>& lock, std::vector<Job> jobs);
  void FinishBatch(Slot& slot, BatchOutcome outcome);
  void Settle(std::vector<Job> jobs, BatchOutcome outcome);
  void Fail(std::vector<Job> jobs, const Error& error);

  const std::unique_ptr<Device> device_;
  const ExecutorOptions options_;
  const bool merges_;  // requests have rows that may be merged
  CompletionQueue completions_;

  mutable std::mutex mutex_;      // guards everything below but the threads' handles
  std::condition_variable wake_;  // a job came, a lane became idle, or the executor stops
  Batcher batcher_;
  std::vector<Slot> slots_;
  std::vector<Slot*> idle_slots_;
  ExecutorStats stats_;
  RequestId next_id_ = 1;
  bool is_stopping_ = false;

  std::mutex close_mutex_;  // guards dispatcher_'s join
  std::thread dispatcher_;
};

}  // namespace reprise

#endif  // REPRISE_EXECUTOR_H_
