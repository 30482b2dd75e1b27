// Finished requests on their way back to one event loop.
#ifndef REPRISE_COMPLETION_QUEUE_H_
#define REPRISE_COMPLETION_QUEUE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "reprise/batcher.h"
#include "reprise/error.h"
#include "reprise/tensor.h"

namespace reprise {

struct Completion {
  RequestId id;
  std::vector<Tensor> outputs;  // empty when `error` is set
  std::optional<Error> error;
  // The request's inputs: released by whoever drains, on its own thread.
  std::shared_ptr<void> keep_alive;
};

// Any thread may push; one reader drains. The file descriptor becomes readable when the queue turns
// from empty to filled, so however many completions pile up, the reader wakes once for all of them.
class CompletionQueue {
 public:
  CompletionQueue();
  ~CompletionQueue();
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;

  void Push(std::vector<Completion> completions);
  std::vector<Completion> Drain();  // never blocks

  int fd() const { return fd_; }
  std::uint64_t wakeup_count() const { return wakeup_count_.load(std::memory_order_relaxed); }

 private:
  const int fd_;
  std::atomic<std::uint64_t> wakeup_count_{0};
  std::mutex mutex_;  // guards completions_
  std::vector<Completion> completions_;
};

}  // namespace reprise

#endif  // REPRISE_COMPLETION_QUEUE_H_
