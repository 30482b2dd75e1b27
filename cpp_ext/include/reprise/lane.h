// A lane runs one batch at a time on a device; a device is a loaded engine that hands out lanes.
#ifndef REPRISE_LANE_H_
#define REPRISE_LANE_H_

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "reprise/batcher.h"
#include "reprise/error.h"
#include "reprise/tensor.h"

namespace reprise {

struct BatchOutcome {
  std::vector<std::vector<Tensor>> outputs;  // by job, then in the device's order of outputs
  std::optional<Error> error;                // set: the whole batch failed, `outputs` is empty
};

class Lane {
 public:
  using Done = std::function<void(BatchOutcome)>;

  virtual ~Lane() = default;

  // Starts a batch and returns without waiting for it. `jobs` and their inputs stay valid and
  // unchanged until `done` was called. `done` is called exactly once, from any thread, unless Start
  // throws. The executor never starts a lane that has not called `done`.
  virtual void Start(const std::vector<Job>& jobs, Done done) = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const std::vector<TensorSpec>& inputs() const = 0;
  virtual const std::vector<TensorSpec>& outputs() const = 0;

  // Called once, before any batch. The device outlives its lanes.
  virtual std::vector<std::unique_ptr<Lane>> MakeLanes(std::int64_t max_batch_size) = 0;
};

// True when the first dimension of each input and output is dynamic, so rows may be merged.
bool HasBatchDimension(const Device& device);

// The rows of all jobs as one block. A lone job keeps its own shape, which may have no batch
// dimension.
std::int64_t CountItems(const std::vector<Job>& jobs);
Shape GatheredShape(const std::vector<Job>& jobs, std::size_t input_index);
void Gather(const std::vector<Job>& jobs, std::size_t input_index, std::byte* destination);

// Copies each job's rows of `output` into memory of its own and appends it to the job's outputs.
// A lone job gets the whole output. Throws kDevice if the rows do not match the batch's items.
void Scatter(const TensorSpec& spec, const TensorView& output, const std::vector<Job>& jobs,
             std::vector<std::vector<Tensor>>& outputs_by_job);

}  // namespace reprise

#endif  // REPRISE_LANE_H_
