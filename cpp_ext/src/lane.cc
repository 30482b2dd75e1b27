#include "reprise/lane.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace reprise {
namespace {

bool StartsDynamic(const TensorSpec& spec) {
  return !spec.dims.empty() && spec.dims.front() == kDynamic;
}

Tensor CopyRows(const TensorView& output, Shape shape, std::size_t offset_bytes) {
  const std::size_t size = static_cast<std::size_t>(ElementCount(shape)) * SizeOf(output.dtype);
  Tensor tensor{output.dtype, std::move(shape), std::make_unique_for_overwrite<std::byte[]>(size)};
  if (size > 0) std::memcpy(tensor.bytes.get(), output.bytes + offset_bytes, size);
  return tensor;
}

}  // namespace

bool HasBatchDimension(const Device& device) {
  return !device.inputs().empty() &&
         std::all_of(device.inputs().begin(), device.inputs().end(), StartsDynamic) &&
         std::all_of(device.outputs().begin(), device.outputs().end(), StartsDynamic);
}

std::int64_t CountItems(const std::vector<Job>& jobs) {
  std::int64_t items = 0;
  for (const Job& job : jobs) items += job.items;
  return items;
}

Shape GatheredShape(const std::vector<Job>& jobs, std::size_t input_index) {
  Shape shape = jobs.front().inputs[input_index].shape;
  if (jobs.size() > 1) shape.front() = CountItems(jobs);
  return shape;
}

void Gather(const std::vector<Job>& jobs, std::size_t input_index, std::byte* destination) {
  for (const Job& job : jobs) {
    const TensorView& rows = job.inputs[input_index];
    const std::size_t size = rows.size_bytes();
    if (size > 0) std::memcpy(destination, rows.bytes, size);
    destination += size;
  }
}

void Scatter(const TensorSpec& spec, const TensorView& output, const std::vector<Job>& jobs,
             std::vector<std::vector<Tensor>>& outputs_by_job) {
  if (jobs.size() == 1) {
    outputs_by_job.front().push_back(CopyRows(output, output.shape, 0));
    return;
  }
  const std::int64_t items = CountItems(jobs);
  if (output.shape.empty() || output.shape.front() != items) {
    throw Error(ErrorCode::kDevice, "output '" + spec.name + "' has shape " +
                                        ToString(output.shape) + " for a batch of " +
                                        std::to_string(items) + " items");
  }
  const std::size_t row_bytes = output.size_bytes() / static_cast<std::size_t>(items);
  std::size_t offset_bytes = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    Shape shape = output.shape;
    shape.front() = jobs[i].items;
    outputs_by_job[i].push_back(CopyRows(output, std::move(shape), offset_bytes));
    offset_bytes += row_bytes * static_cast<std::size_t>(jobs[i].items);
  }
}

}  // namespace reprise
