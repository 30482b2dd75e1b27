#include "reprise/batcher.h"

#include <algorithm>
#include <string>

#include "reprise/error.h"

namespace reprise {
namespace {

bool CanShareBatch(const Job& first, const Job& second) {
  for (std::size_t i = 0; i < first.inputs.size(); ++i) {
    const Shape& a = first.inputs[i].shape;
    const Shape& b = second.inputs[i].shape;
    if (a.size() != b.size() || !std::equal(a.begin() + 1, a.end(), b.begin() + 1)) return false;
  }
  return true;
}

}  // namespace

void Batcher::Push(Job job) {
  if (jobs_.size() >= options_.queue_limit) {
    throw Error(ErrorCode::kQueueFull,
                "the executor's queue is full: " + std::to_string(jobs_.size()) +
                    " requests wait, the limit is " + std::to_string(options_.queue_limit));
  }
  jobs_.push_back(std::move(job));
  Index(std::prev(jobs_.end()));
}

void Batcher::PushFrontAlone(std::vector<Job> jobs) {
  for (auto job = jobs.rbegin(); job != jobs.rend(); ++job) {
    job->runs_alone = true;
    jobs_.push_front(std::move(*job));
    Index(jobs_.begin());
  }
}

std::optional<Job> Batcher::Remove(RequestId id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return std::nullopt;
  return Take(found->second);
}

std::vector<Job> Batcher::TakeExpired(TimePoint now) {
  std::vector<Job> expired;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    expired.push_back(Take(by_id_.at(deadlines_.begin()->second)));
  }
  return expired;
}

std::vector<Job> Batcher::TakeReady(TimePoint now) {
  if (jobs_.empty()) return {};
  const Candidate candidate = Collect();
  if (!candidate.is_closed && now < *NextRelease()) return {};
  std::vector<Job> batch;
  batch.reserve(candidate.positions.size());
  for (const Position position : candidate.positions) batch.push_back(Take(position));
  return batch;
}

std::vector<Job> Batcher::TakeAll() {
  std::vector<Job> all;
  while (!jobs_.empty()) all.push_back(Take(jobs_.begin()));
  return all;
}

std::optional<TimePoint> Batcher::NextDeadline() const {
  if (deadlines_.empty()) return std::nullopt;
  return deadlines_.begin()->first;
}

std::optional<TimePoint> Batcher::NextRelease() const {
  if (jobs_.empty()) return std::nullopt;
  const Job& oldest = jobs_.front();
  const TimePoint release = oldest.enqueued_at + options_.max_queue_delay;
  if (!oldest.deadline) return release;
  return std::min(release, oldest.enqueued_at + (*oldest.deadline - oldest.enqueued_at) / 2);
}

Batcher::Candidate Batcher::Collect() {
  Candidate candidate;
  candidate.positions.push_back(jobs_.begin());
  const Job& leader = jobs_.front();
  std::int64_t items = leader.items;
  candidate.is_closed = leader.runs_alone || items >= options_.max_batch_size;
  for (auto job = std::next(jobs_.begin()); job != jobs_.end() && !candidate.is_closed; ++job) {
    if (job->runs_alone || !CanShareBatch(leader, *job)) continue;
    // A job that does not fit closes the batch: a smaller one behind it must not overtake.
    if (items + job->items > options_.max_batch_size) {
      candidate.is_closed = true;
      break;
    }
    items += job->items;
    candidate.positions.push_back(job);
    candidate.is_closed = items == options_.max_batch_size;
  }
  return candidate;
}

Job Batcher::Take(Position position) {
  if (position->deadline) deadlines_.erase({*position->deadline, position->id});
  by_id_.erase(position->id);
  Job job = std::move(*position);
  jobs_.erase(position);
  return job;
}

void Batcher::Index(Position position) {
  by_id_.emplace(position->id, position);
  if (position->deadline) deadlines_.emplace(*position->deadline, position->id);
}

}  // namespace reprise
