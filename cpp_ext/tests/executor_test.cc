// The executor on the host device: no inference library takes part.
#include "reprise/executor.h"

#include <poll.h>

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "check.h"
#include "host_device.h"

namespace reprise {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

ExecutorOptions Options(std::int64_t max_batch_size, std::size_t queue_limit = 4096) {
  return {max_batch_size, microseconds(0), queue_limit};
}

Request MakeRequest(float value, std::int64_t items = 1, std::int64_t width = 4) {
  auto rows = std::make_shared<std::vector<float>>(items * width, value);
  Request request;
  request.inputs.push_back(
      {"x", {DType::kF32, {items, width}, reinterpret_cast<const std::byte*>(rows->data())}});
  request.keep_alive = rows;
  return request;
}

// Drains until `count` requests completed, or aborts after ten seconds.
std::map<RequestId, Completion> Await(Executor& executor, std::size_t count) {
  std::map<RequestId, Completion> completions;
  while (completions.size() < count) {
    pollfd readable{executor.completion_fd(), POLLIN, 0};
    CHECK(poll(&readable, 1, 10'000) == 1);
    for (Completion& completion : executor.Drain()) {
      const RequestId id = completion.id;
      CHECK(completions.emplace(id, std::move(completion)).second);
    }
  }
  return completions;
}

// Until the executor's numbers are as wanted, or aborts after ten seconds.
void AwaitStats(const Executor& executor, const std::function<bool(const ExecutorStats&)>& wanted) {
  const TimePoint limit = Clock::now() + std::chrono::seconds(10);
  while (!wanted(executor.stats())) {
    CHECK(Clock::now() < limit);
    std::this_thread::yield();
  }
}

ErrorCode CodeOf(const std::function<void()>& call, std::string_view part = "") {
  try {
    call();
  } catch (const Error& error) {
    CHECK(std::string_view(error.what()).find(part) != std::string_view::npos);
    return error.code();
  }
  CHECK(!"an error was expected");
  return ErrorCode::kDevice;
}

float FirstValue(const Completion& completion) {
  float value;
  std::memcpy(&value, completion.outputs.front().bytes.get(), sizeof value);
  return value;
}

void EachRequestGetsItsOwnRows() {
  Gate gate;
  Executor executor(std::make_unique<HostDevice>(gate, 2), Options(8));
  std::map<RequestId, int> sent;
  for (int i = 0; i < 2000; ++i) sent[executor.Submit(MakeRequest(i + 1, i % 3 + 1))] = i;
  const auto completions = Await(executor, sent.size());
  for (const auto& [id, completion] : completions) {
    const int i = sent.at(id);
    CHECK(!completion.error);
    CHECK(completion.outputs.front().shape == (Shape{i % 3 + 1, 4}));
    CHECK(FirstValue(completion) == 2.0f * (i + 1));
  }
  const ExecutorStats stats = executor.stats();
  CHECK(stats.completed_count == 2000);
  CHECK(stats.largest_batch_size <= 8);
  CHECK(stats.batch_count < 2000);
}

void ManyThreadsMaySubmit() {
  Gate gate;
  Executor executor(std::make_unique<HostDevice>(gate, 2), Options(8));
  {
    std::vector<std::jthread> callers;
    for (int i = 0; i < 4; ++i) {
      callers.emplace_back([&] {
        for (int k = 0; k < 200; ++k) executor.Submit(MakeRequest(1));
      });
    }
  }
  CHECK(Await(executor, 800).size() == 800);
}

void JobsThatPileUpWakeTheReaderOnce() {
  Gate gate;
  gate.Close();
  Executor executor(std::make_unique<HostDevice>(gate, 1), Options(1));
  for (int i = 0; i < 50; ++i) executor.Submit(MakeRequest(1));
  gate.Open();
  AwaitStats(executor, [](const ExecutorStats& stats) { return stats.completed_count == 50; });
  CHECK(executor.stats().wakeup_count == 1);
  CHECK(executor.Drain().size() == 50);
  CHECK(executor.Drain().empty());
}

void ACancelledRequestLeavesTheQueue() {
  Gate gate;
  gate.Close();
  Executor executor(std::make_unique<HostDevice>(gate, 1), Options(1));
  const RequestId running = executor.Submit(MakeRequest(1));
  AwaitStats(executor, [](const ExecutorStats& stats) { return stats.running_count == 1; });
  const RequestId queued = executor.Submit(MakeRequest(2));
  CHECK(executor.Cancel(queued));
  CHECK(!executor.Cancel(queued));
  CHECK(!executor.Cancel(running));
  CHECK(executor.stats().queued_count == 0);
  CHECK(Await(executor, 1).at(queued).error->code() == ErrorCode::kCancelled);
  gate.Open();
  CHECK(!Await(executor, 1).at(running).error);
}

void AnExpiredRequestLeavesTheQueueWhileTheLaneIsBusy() {
  Gate gate;
  gate.Close();
  Executor executor(std::make_unique<HostDevice>(gate, 1), Options(4));
  executor.Submit(MakeRequest(1));
  AwaitStats(executor, [](const ExecutorStats& stats) { return stats.running_count == 1; });
  Request late = MakeRequest(2);
  late.deadline = milliseconds(5);
  const RequestId id = executor.Submit(std::move(late));
  CHECK(Await(executor, 1).at(id).error->code() == ErrorCode::kDeadlineExceeded);
  CHECK(executor.stats().queued_count == 0);
  gate.Open();
  Await(executor, 1);
}

void AFullQueueRefusesAndGoesOn() {
  Gate gate;
  gate.Close();
  Executor executor(std::make_unique<HostDevice>(gate, 1), Options(1, 2));
  executor.Submit(MakeRequest(1));
  AwaitStats(executor, [](const ExecutorStats& stats) { return stats.running_count == 1; });
  executor.Submit(MakeRequest(1));
  executor.Submit(MakeRequest(1));
  CHECK(CodeOf([&] { executor.Submit(MakeRequest(1)); }, "limit is 2") == ErrorCode::kQueueFull);
  gate.Open();
  CHECK(Await(executor, 3).size() == 3);
  CHECK(executor.stats().rejected_count == 1);
}

void APoisonousRequestDoesNotFailItsNeighbours() {
  Gate gate;
  gate.Close();
  Executor executor(std::make_unique<HostDevice>(gate, 1), Options(8));
  executor.Submit(MakeRequest(9));
  AwaitStats(executor, [](const ExecutorStats& stats) { return stats.running_count == 1; });
  const RequestId good = executor.Submit(MakeRequest(3));
  const RequestId bad = executor.Submit(MakeRequest(kPoison));
  gate.Open();
  const auto completions = Await(executor, 3);
  CHECK(FirstValue(completions.at(good)) == 6.0f);
  CHECK(completions.at(bad).error->code() == ErrorCode::kDevice);
  CHECK(executor.stats().failed_count == 1);
}

void InvalidRequestsAreRefusedByName() {
  Gate gate;
  Executor executor(std::make_unique<HostDevice>(gate, 1), Options(4));
  const auto refused = [&](Request request, std::string_view part) {
    CHECK(CodeOf([&] { executor.Submit(std::move(request)); }, part) == ErrorCode::kInvalidInput);
  };
  Request renamed = MakeRequest(1);
  renamed.inputs.front().name = "z";
  refused(std::move(renamed), "'z' is unknown");
  refused(Request{}, "'x' is missing");
  refused(MakeRequest(1, 1, 5), "expected shape [?, 4], got [1, 5]");
  refused(MakeRequest(1, 5), "send 1 to 4");
  refused(MakeRequest(1, 0), "has 0 items");
  Request retyped = MakeRequest(1);
  retyped.inputs.front().tensor.dtype = DType::kI32;
  refused(std::move(retyped), "expected dtype float32, got int32");
}

void AnEngineWithoutABatchDimensionRunsOneRequestAtATime() {
  Gate gate;
  const auto device = [&] { return std::make_unique<HostDevice>(gate, 1, Shape{2, 4}); };
  CHECK(CodeOf([&] { Executor executor(device(), Options(4)); }, "max_batch_size must be 1") ==
        ErrorCode::kInvalidInput);
  Executor executor(device(), Options(1));
  for (int i = 0; i < 10; ++i) executor.Submit(MakeRequest(1, 2));
  Await(executor, 10);
  CHECK(executor.stats().batch_count == 10);
}

void ClosingFailsWhatIsQueuedAndDeliversWhatRuns() {
  Gate gate;
  gate.Close();
  Executor executor(std::make_unique<HostDevice>(gate, 1), Options(1));
  const RequestId running = executor.Submit(MakeRequest(1));
  AwaitStats(executor, [](const ExecutorStats& stats) { return stats.running_count == 1; });
  const RequestId queued = executor.Submit(MakeRequest(1));
  std::jthread closer([&] { executor.Close(); });
  CHECK(Await(executor, 1).at(queued).error->code() == ErrorCode::kShutdown);
  gate.Open();
  closer.join();
  CHECK(!Await(executor, 1).at(running).error);
  CHECK(CodeOf([&] { executor.Submit(MakeRequest(1)); }) == ErrorCode::kShutdown);
}

void ADestroyedExecutorLetsGoOfItsInputs() {
  Gate gate;
  std::weak_ptr<void> kept;
  {
    Executor executor(std::make_unique<HostDevice>(gate, 2), Options(8));
    Request request = MakeRequest(1);
    kept = request.keep_alive;
    executor.Submit(std::move(request));
  }
  CHECK(kept.expired());
}

}  // namespace
}  // namespace reprise

int main() {
  using namespace reprise;
  RUN(EachRequestGetsItsOwnRows);
  RUN(ManyThreadsMaySubmit);
  RUN(JobsThatPileUpWakeTheReaderOnce);
  RUN(ACancelledRequestLeavesTheQueue);
  RUN(AnExpiredRequestLeavesTheQueueWhileTheLaneIsBusy);
  RUN(AFullQueueRefusesAndGoesOn);
  RUN(APoisonousRequestDoesNotFailItsNeighbours);
  RUN(InvalidRequestsAreRefusedByName);
  RUN(AnEngineWithoutABatchDimensionRunsOneRequestAtATime);
  RUN(ClosingFailsWhatIsQueuedAndDeliversWhatRuns);
  RUN(ADestroyedExecutorLetsGoOfItsInputs);
}
