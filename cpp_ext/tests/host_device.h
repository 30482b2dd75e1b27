// A device in host memory whose lanes double each element, when the test lets them.
#ifndef REPRISE_TESTS_HOST_DEVICE_H_
#define REPRISE_TESTS_HOST_DEVICE_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "reprise/lane.h"

namespace reprise {

// Holds lanes back until it is opened. Starts open.
class Gate {
 public:
  void Close() { Set(false); }
  void Open() { Set(true); }
  void Pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_open_; });
  }

 private:
  void Set(bool is_open) {
    const std::lock_guard lock(mutex_);
    is_open_ = is_open;
    changed_.notify_all();
  }

  std::mutex mutex_;  // guards is_open_
  std::condition_variable changed_;
  bool is_open_ = true;
};

inline constexpr float kPoison = -1.0f;  // a batch that holds this value fails

class HostLane final : public Lane {
 public:
  HostLane(const TensorSpec& output, Gate& gate)
      : output_(output), gate_(gate), thread_([this] { Loop(); }) {}

  ~HostLane() override {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
      started_.notify_one();
    }
    thread_.join();
  }

  void Start(const std::vector<Job>& jobs, Done done) override {
    const std::lock_guard lock(mutex_);
    jobs_ = &jobs;
    done_ = std::move(done);
    started_.notify_one();
  }

 private:
  void Loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      started_.wait(lock, [this] { return jobs_ != nullptr || is_stopping_; });
      if (jobs_ == nullptr) return;
      const std::vector<Job>& jobs = *std::exchange(jobs_, nullptr);
      const Done done = std::exchange(done_, nullptr);
      lock.unlock();
      gate_.Pass();
      done(Run(jobs));
      lock.lock();
    }
  }

  BatchOutcome Run(const std::vector<Job>& jobs) {
    const Shape shape = GatheredShape(jobs, 0);
    std::vector<float> rows(static_cast<std::size_t>(ElementCount(shape)));
    Gather(jobs, 0, reinterpret_cast<std::byte*>(rows.data()));
    for (float& value : rows) {
      if (value == kPoison) return {{}, Error(ErrorCode::kDevice, "poison")};
      value *= 2;
    }
    BatchOutcome outcome;
    outcome.outputs.resize(jobs.size());
    Scatter(output_, {DType::kF32, shape, reinterpret_cast<const std::byte*>(rows.data())}, jobs,
            outcome.outputs);
    return outcome;
  }

  const TensorSpec& output_;
  Gate& gate_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable started_;
  const std::vector<Job>* jobs_ = nullptr;
  Done done_;
  bool is_stopping_ = false;
  std::thread thread_;
};

class HostDevice final : public Device {
 public:
  HostDevice(Gate& gate, std::size_t lane_count, Shape dims = {kDynamic, 4})
      : gate_(gate),
        lane_count_(lane_count),
        inputs_{{"x", DType::kF32, dims}},
        outputs_{{"y", DType::kF32, dims}} {}

  const std::vector<TensorSpec>& inputs() const override { return inputs_; }
  const std::vector<TensorSpec>& outputs() const override { return outputs_; }

  std::vector<std::unique_ptr<Lane>> MakeLanes(std::int64_t /*max_batch_size*/) override {
    std::vector<std::unique_ptr<Lane>> lanes;
    for (std::size_t i = 0; i < lane_count_; ++i) {
      lanes.push_back(std::make_unique<HostLane>(outputs_.front(), gate_));
    }
    return lanes;
  }

 private:
  Gate& gate_;
  const std::size_t lane_count_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
};

}  // namespace reprise

#endif  // REPRISE_TESTS_HOST_DEVICE_H_
