// A thread pool that runs one task at a time, split into pieces that the threads take in turn. It uses the OpenMP
// threads of torch where they are available, and threads of its own elsewhere.
#pragma once

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
  // Calls work(piece, worker) for each piece in 0..pieces, on at most `threads` workers; the caller is worker 0. The
  // caller checks `stop()` between pieces; once it is true, no further piece is started. Rethrows exceptions of pieces.
  void run(int64_t pieces, int threads, const std::function<void(int64_t, int)>& work,
           const std::function<bool()>& stop);

  // The pool of this process. The child of a fork gets a new one, since threads do not survive a fork.
  static Pool& instance();

  ~Pool();

 private:
  void wait_for_work(int worker);
  void take_pieces(int worker);
  void grow(int threads);
  static void join(void* pool);

  std::mutex turn_;  // held by the caller whose task is running
  std::mutex mutex_;
  std::condition_variable begin_, end_;
  std::vector<std::thread> threads_;
  const std::function<void(int64_t, int)>* work_ = nullptr;
  const std::function<bool()>* stop_ = nullptr;
  std::thread::id caller_;
  std::atomic<int> joined_{0};  // threads of torch that take part, without the caller
  std::atomic<int64_t> next_{0};
  std::atomic<bool> halt_{false};
  int64_t pieces_ = 0;
  int wanted_ = 0;  // own threads that may take part in this task
  int busy_ = 0;
  uint64_t task_ = 0;
  bool closing_ = false;
  std::exception_ptr failure_;
};

}  // namespace diml
