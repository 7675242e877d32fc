// Threads that wait for work, torch's own where they can be had: at most one task at a time, split into pieces that threads take in turn.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace diml {

class Pool {
 public:
  // Calls work(piece, worker) for each piece in 0..pieces, by at most `threads` workers, the caller being worker 0.
  // Between pieces the caller asks `stop()`; if true, no further piece is begun. An exception of a piece is rethrown.
  void run(int64_t pieces, int threads, const std::function<void(int64_t, int)>& work,
           const std::function<bool()>& stop);

  // The one pool of this process. After a fork the child gets a new one: threads do not survive it.
  static Pool& instance();

  ~Pool();

 private:
  void wait_for_work(int worker);
  void take_pieces(int worker);
  void grow(int threads);
  static void join(void* pool);

  std::mutex turn_;  // held by the caller whose task is under way
  std::mutex mutex_;
  std::condition_variable begin_, end_;
  std::vector<std::thread> threads_;
  const std::function<void(int64_t, int)>* work_ = nullptr;
  const std::function<bool()>* stop_ = nullptr;
  std::thread::id caller_;
  std::atomic<int> joined_{0};  // threads of torch that take part, besides the caller
  std::atomic<int64_t> next_{0};
  std::atomic<bool> halt_{false};
  int64_t pieces_ = 0;
  int wanted_ = 0;  // helpers that may take part in this task
  int busy_ = 0;
  uint64_t task_ = 0;
  bool closing_ = false;
  std::exception_ptr failure_;
};

}  // namespace diml
