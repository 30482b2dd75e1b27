#include "reprise/executor.h"

#include <algorithm>
#include <string>
#include <utility>

namespace reprise {
namespace {

ExecutorOptions Checked(const ExecutorOptions& options) {
  if (options.max_batch_size < 1) {
    throw Error(ErrorCode::kInvalidInput, "max_batch_size must be at least 1");
  }
  if (options.queue_limit < 1) {
    throw Error(ErrorCode::kInvalidInput, "queue_limit must be at least 1");
  }
  if (options.max_queue_delay.count() < 0) {
    throw Error(ErrorCode::kInvalidInput, "max_queue_delay_us must not be negative");
  }
  return options;
}

bool Merges(const Device& device, const ExecutorOptions& options) {
  if (options.max_batch_size == 1) return false;
  if (HasBatchDimension(device)) return true;
  throw Error(
      ErrorCode::kInvalidInput,
      "max_batch_size must be 1: the first dimension of some input or output of this engine "
      "is fixed, so requests cannot be merged");
}

std::string NamesOf(const std::vector<TensorSpec>& specs) {
  std::string names;
  for (const TensorSpec& spec : specs) names += (names.empty() ? "'" : ", '") + spec.name + "'";
  return names;
}

bool Fits(const TensorSpec& spec, const Shape& shape) {
  return std::equal(spec.dims.begin(), spec.dims.end(), shape.begin(), shape.end(),
                    [](std::int64_t dim, std::int64_t given) {
                      return dim == kDynamic ? given >= 0 : dim == given;
                    });
}

void CheckTensor(const TensorSpec& spec, const TensorView& tensor) {
  const std::string prefix = "input '" + spec.name + "': expected ";
  if (tensor.dtype != spec.dtype) {
    throw Error(ErrorCode::kInvalidInput, prefix + "dtype " + std::string(NameOf(spec.dtype)) +
                                              ", got " + std::string(NameOf(tensor.dtype)));
  }
  if (!Fits(spec, tensor.shape)) {
    throw Error(ErrorCode::kInvalidInput,
                prefix + "shape " + ToString(spec.dims) + ", got " + ToString(tensor.shape));
  }
}

// Inputs in the device's order.
std::vector<TensorView> Arrange(const std::vector<TensorSpec>& specs,
                                std::vector<NamedTensorView>& given) {
  for (const NamedTensorView& input : given) {
    if (std::none_of(specs.begin(), specs.end(),
                     [&](const TensorSpec& spec) { return spec.name == input.name; })) {
      throw Error(ErrorCode::kInvalidInput, "input '" + std::string(input.name) +
                                                "' is unknown: this engine takes " +
                                                NamesOf(specs));
    }
  }
  std::vector<TensorView> arranged;
  arranged.reserve(specs.size());
  for (const TensorSpec& spec : specs) {
    const auto found = std::find_if(given.begin(), given.end(), [&](const NamedTensorView& input) {
      return input.name == spec.name;
    });
    if (found == given.end()) {
      throw Error(ErrorCode::kInvalidInput, "input '" + spec.name + "' is missing: expected " +
                                                std::string(NameOf(spec.dtype)) + " " +
                                                ToString(spec.dims));
    }
    CheckTensor(spec, found->tensor);
    arranged.push_back(std::move(found->tensor));
  }
  return arranged;
}

}  // namespace

Executor::Executor(std::unique_ptr<Device> device, const ExecutorOptions& options)
    : device_(std::move(device)),
      options_(Checked(options)),
      merges_(Merges(*device_, options_)),
      batcher_(options_) {
  for (std::unique_ptr<Lane>& lane : device_->MakeLanes(options_.max_batch_size)) {
    slots_.push_back(Slot{std::move(lane), {}});
  }
  for (Slot& slot : slots_) idle_slots_.push_back(&slot);
  stats_.lane_count = slots_.size();
  dispatcher_ = std::thread(&Executor::DispatchLoop, this);
}

Executor::~Executor() { Close(); }

RequestId Executor::Submit(Request request) {
  Job job = Validate(std::move(request));
  const std::lock_guard lock(mutex_);
  if (is_stopping_) throw Error(ErrorCode::kShutdown, "the executor is closed");
  job.id = next_id_++;
  const RequestId id = job.id;
  try {
    batcher_.Push(std::move(job));
  } catch (const Error&) {
    ++stats_.rejected_count;
    throw;
  }
  wake_.notify_one();
  return id;
}

bool Executor::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  std::optional<Job> job = batcher_.Remove(id);
  if (!job) return false;
  ++stats_.cancelled_count;
  std::vector<Job> jobs;
  jobs.push_back(std::move(*job));
  Fail(std::move(jobs), Error(ErrorCode::kCancelled, "the request was cancelled"));
  return true;
}

void Executor::Close() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
    wake_.notify_all();
  }
  const std::lock_guard lock(close_mutex_);
  if (dispatcher_.joinable()) dispatcher_.join();
}

ExecutorStats Executor::stats() const {
  const std::lock_guard lock(mutex_);
  ExecutorStats stats = stats_;
  stats.queued_count = batcher_.size();
  stats.wakeup_count = completions_.wakeup_count();
  return stats;
}

Job Executor::Validate(Request request) const {
  Job job;
  job.inputs = Arrange(device_->inputs(), request.inputs);
  job.items = merges_ ? ValidateItems(job.inputs) : 1;
  job.enqueued_at = Clock::now();
  if (request.deadline) {
    job.deadline = job.enqueued_at + std::chrono::duration_cast<Clock::duration>(*request.deadline);
  }
  job.keep_alive = std::move(request.keep_alive);
  return job;
}

std::int64_t Executor::ValidateItems(const std::vector<TensorView>& inputs) const {
  const std::vector<TensorSpec>& specs = device_->inputs();
  const std::int64_t items = inputs.front().shape.front();
  for (std::size_t i = 1; i < inputs.size(); ++i) {
    if (inputs[i].shape.front() == items) continue;
    throw Error(ErrorCode::kInvalidInput, "input '" + specs[i].name + "' has " +
                                              std::to_string(inputs[i].shape.front()) +
                                              " items along its first dimension, but '" +
                                              specs[0].name + "' has " + std::to_string(items));
  }
  if (items < 1 || items > options_.max_batch_size) {
    throw Error(ErrorCode::kInvalidInput,
                "input '" + specs[0].name + "' has " + std::to_string(items) +
                    " items along its first dimension: send 1 to " +
                    std::to_string(options_.max_batch_size) + " (max_batch_size)");
  }
  return items;
}

void Executor::DispatchLoop() {
  std::unique_lock lock(mutex_);
  while (!is_stopping_) {
    const TimePoint now = Clock::now();
    std::vector<Job> expired = batcher_.TakeExpired(now);
    stats_.expired_count += expired.size();
    Fail(std::move(expired),
         Error(ErrorCode::kDeadlineExceeded, "the deadline passed before the request could start"));
    std::vector<Job> batch;
    if (!idle_slots_.empty()) batch = batcher_.TakeReady(now);
    if (batch.empty()) {
      WaitForWork(lock);
    } else {
      StartBatch(lock, std::move(batch));
    }
  }
  Fail(batcher_.TakeAll(),
       Error(ErrorCode::kShutdown, "the executor was closed before the request could run"));
  wake_.wait(lock, [this] { return idle_slots_.size() == slots_.size(); });
}

// Called after both the queue and the lanes were looked at under this very lock, so no wake-up is
// lost.
void Executor::WaitForWork(std::unique_lock<std::mutex>& lock) {
  std::optional<TimePoint> until = batcher_.NextDeadline();
  if (!idle_slots_.empty()) {
    const std::optional<TimePoint> release = batcher_.NextRelease();
    if (release && (!until || *release < *until)) until = release;
  }
  if (until) {
    wake_.wait_until(lock, *until);
  } else {
    wake_.wait(lock);
  }
}

void Executor::StartBatch(std::unique_lock<std::mutex>& lock, std::vector<Job> jobs) {
  Slot& slot = *idle_slots_.back();
  idle_slots_.pop_back();
  const std::int64_t items = CountItems(jobs);
  stats_.batch_count += 1;
  stats_.item_count += static_cast<std::uint64_t>(items);
  stats_.largest_batch_size = std::max(stats_.largest_batch_size, items);
  stats_.running_count += jobs.size();
  slot.jobs = std::move(jobs);
  lock.unlock();
  try {
    slot.lane->Start(
        slot.jobs, [this, &slot](BatchOutcome outcome) { FinishBatch(slot, std::move(outcome)); });
  } catch (const std::exception& error) {
    FinishBatch(slot, BatchOutcome{{}, Error(ErrorCode::kDevice, error.what())});
  }
  lock.lock();
}

void Executor::FinishBatch(Slot& slot, BatchOutcome outcome) {
  const std::lock_guard lock(mutex_);
  std::vector<Job> jobs = std::exchange(slot.jobs, {});
  stats_.running_count -= jobs.size();
  if (outcome.error && jobs.size() > 1 && !is_stopping_) {
    batcher_.PushFrontAlone(std::move(jobs));
  } else {
    Settle(std::move(jobs), std::move(outcome));
  }
  idle_slots_.push_back(&slot);
  // Under the lock: once Close sees every slot idle, the executor may be gone.
  wake_.notify_all();
}

void Executor::Settle(std::vector<Job> jobs, BatchOutcome outcome) {
  if (outcome.error) {
    stats_.failed_count += jobs.size();
    Fail(std::move(jobs), *outcome.error);
    return;
  }
  stats_.completed_count += jobs.size();
  std::vector<Completion> completions;
  completions.reserve(jobs.size());
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    completions.push_back(Completion{jobs[i].id, std::move(outcome.outputs[i]), std::nullopt,
                                     std::move(jobs[i].keep_alive)});
  }
  completions_.Push(std::move(completions));
}

void Executor::Fail(std::vector<Job> jobs, const Error& error) {
  std::vector<Completion> completions;
  completions.reserve(jobs.size());
  for (Job& job : jobs) {
    completions.push_back(Completion{job.id, {}, error, std::move(job.keep_alive)});
  }
  completions_.Push(std::move(completions));
}

}  // namespace reprise
