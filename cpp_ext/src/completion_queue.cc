#include "reprise/completion_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <iterator>
#include <system_error>
#include <utility>

namespace reprise {
namespace {

int MakeEventFd() {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return fd;
}

}  // namespace

CompletionQueue::CompletionQueue() : fd_(MakeEventFd()) {}

CompletionQueue::~CompletionQueue() { close(fd_); }

void CompletionQueue::Push(std::vector<Completion> completions) {
  if (completions.empty()) return;
  const std::lock_guard lock(mutex_);
  const bool was_empty = completions_.empty();
  completions_.insert(completions_.end(), std::make_move_iterator(completions.begin()),
                      std::make_move_iterator(completions.end()));
  if (!was_empty) return;
  // Cannot fail: the counter is at most 1, since Drain reads it under the same mutex.
  [[maybe_unused]] const int result = eventfd_write(fd_, 1);
  wakeup_count_.fetch_add(1, std::memory_order_relaxed);
}

std::vector<Completion> CompletionQueue::Drain() {
  const std::lock_guard lock(mutex_);
  eventfd_t ignored;
  [[maybe_unused]] const int result = eventfd_read(fd_, &ignored);
  return std::exchange(completions_, {});
}

}  // namespace reprise
