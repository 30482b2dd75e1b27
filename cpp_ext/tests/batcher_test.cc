// The batcher's rules under a fake clock.
#include "reprise/batcher.h"

#include <string>

#include "check.h"
#include "reprise/error.h"

namespace reprise {
namespace {

using std::chrono::microseconds;

TimePoint At(int us) { return TimePoint(microseconds(us)); }

Job MakeJob(RequestId id, int at_us, std::int64_t items = 1, std::int64_t width = 4) {
  Job job;
  job.id = id;
  job.items = items;
  job.inputs.push_back({DType::kF32, {items, width}, nullptr});
  job.enqueued_at = At(at_us);
  return job;
}

std::string Ids(const std::vector<Job>& jobs) {
  std::string ids;
  for (const Job& job : jobs) ids += std::to_string(job.id) + " ";
  return ids;
}

BatcherOptions Options(std::int64_t max_batch_size, int delay_us = 0, std::size_t limit = 16) {
  return {max_batch_size, microseconds(delay_us), limit};
}

void WithoutDelayABatchTakesWhatWaits() {
  Batcher batcher(Options(4));
  CHECK(batcher.TakeReady(At(0)).empty());
  for (RequestId id = 1; id <= 6; ++id) batcher.Push(MakeJob(id, 0));
  CHECK(Ids(batcher.TakeReady(At(0))) == "1 2 3 4 ");
  CHECK(Ids(batcher.TakeReady(At(0))) == "5 6 ");
  CHECK(batcher.size() == 0);
}

void ABatchThatCanGrowWaitsUntilItsOldestJobIsOldEnough() {
  Batcher batcher(Options(4, 100));
  batcher.Push(MakeJob(1, 0));
  batcher.Push(MakeJob(2, 90));
  CHECK(batcher.TakeReady(At(99)).empty());
  CHECK(batcher.NextRelease() == At(100));
  CHECK(Ids(batcher.TakeReady(At(100))) == "1 2 ");
}

void AFullBatchDoesNotWait() {
  Batcher batcher(Options(4, 100));
  batcher.Push(MakeJob(1, 0, 3));
  batcher.Push(MakeJob(2, 0, 1));
  CHECK(Ids(batcher.TakeReady(At(0))) == "1 2 ");
}

void BatchSizeCountsItemsAndASmallJobDoesNotOvertakeALargeOne() {
  Batcher batcher(Options(4, 100));
  batcher.Push(MakeJob(1, 0, 3));
  batcher.Push(MakeJob(2, 0, 2));
  batcher.Push(MakeJob(3, 0, 1));
  CHECK(Ids(batcher.TakeReady(At(0))) == "1 ");
  CHECK(Ids(batcher.TakeReady(At(100))) == "2 3 ");
}

void OnlyEqualTrailingShapesAreMerged() {
  Batcher batcher(Options(8));
  batcher.Push(MakeJob(1, 0, 1, 4));
  batcher.Push(MakeJob(2, 0, 1, 7));
  batcher.Push(MakeJob(3, 0, 2, 4));
  CHECK(Ids(batcher.TakeReady(At(0))) == "1 3 ");
  CHECK(Ids(batcher.TakeReady(At(0))) == "2 ");
}

void JobsAreNotMergedWhenTheBatchSizeIsOne() {
  Batcher batcher(Options(1, 100));
  batcher.Push(MakeJob(1, 0));
  batcher.Push(MakeJob(2, 0));
  CHECK(Ids(batcher.TakeReady(At(0))) == "1 ");
  CHECK(Ids(batcher.TakeReady(At(0))) == "2 ");
}

void AnExpiredJobLeavesTheQueue() {
  Batcher batcher(Options(4, 100));
  Job job = MakeJob(1, 0);
  job.deadline = At(50);
  batcher.Push(std::move(job));
  batcher.Push(MakeJob(2, 0));
  CHECK(batcher.NextDeadline() == At(50));
  CHECK(batcher.TakeExpired(At(49)).empty());
  CHECK(Ids(batcher.TakeExpired(At(50))) == "1 ");
  CHECK(!batcher.NextDeadline());
  CHECK(Ids(batcher.TakeReady(At(100))) == "2 ");
}

void AJobIsReleasedBeforeTheDelayWouldEatItsDeadline() {
  Batcher batcher(Options(4, 100));
  Job job = MakeJob(1, 0);
  job.deadline = At(60);
  batcher.Push(std::move(job));
  CHECK(batcher.NextRelease() == At(30));
  CHECK(Ids(batcher.TakeReady(At(30))) == "1 ");
}

void ARemovedJobIsGone() {
  Batcher batcher(Options(4));
  batcher.Push(MakeJob(1, 0));
  batcher.Push(MakeJob(2, 0));
  CHECK(batcher.Remove(1)->id == 1);
  CHECK(!batcher.Remove(1));
  CHECK(Ids(batcher.TakeReady(At(0))) == "2 ");
}

void AFullQueueRefuses() {
  Batcher batcher(Options(4, 0, 2));
  batcher.Push(MakeJob(1, 0));
  batcher.Push(MakeJob(2, 0));
  bool refused = false;
  try {
    batcher.Push(MakeJob(3, 0));
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kQueueFull;
  }
  CHECK(refused);
  CHECK(Ids(batcher.TakeAll()) == "1 2 ");
}

void JobsOfAFailedBatchComeBackFirstAndAlone() {
  Batcher batcher(Options(4));
  batcher.Push(MakeJob(1, 0));
  batcher.Push(MakeJob(2, 0));
  std::vector<Job> batch = batcher.TakeReady(At(0));
  batcher.Push(MakeJob(3, 1));
  batcher.PushFrontAlone(std::move(batch));
  CHECK(Ids(batcher.TakeReady(At(1))) == "1 ");
  CHECK(Ids(batcher.TakeReady(At(1))) == "2 ");
  CHECK(Ids(batcher.TakeReady(At(1))) == "3 ");
}

}  // namespace
}  // namespace reprise

int main() {
  using namespace reprise;
  RUN(WithoutDelayABatchTakesWhatWaits);
  RUN(ABatchThatCanGrowWaitsUntilItsOldestJobIsOldEnough);
  RUN(AFullBatchDoesNotWait);
  RUN(BatchSizeCountsItemsAndASmallJobDoesNotOvertakeALargeOne);
  RUN(OnlyEqualTrailingShapesAreMerged);
  RUN(JobsAreNotMergedWhenTheBatchSizeIsOne);
  RUN(AnExpiredJobLeavesTheQueue);
  RUN(AJobIsReleasedBeforeTheDelayWouldEatItsDeadline);
  RUN(ARemovedJobIsGone);
  RUN(AFullQueueRefuses);
  RUN(JobsOfAFailedBatchComeBackFirstAndAlone);
}
