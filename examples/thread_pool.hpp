// A plain pool of threads, as a host would have one: the parallel_for of examples/threads.cpp and of the benchmarks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

class thread_pool {
 public:
  /// The calling thread is worker 0; `workers` - 1 threads wait for work. Throws std::system_error if one cannot be started.
  explicit thread_pool(std::size_t workers) {
    try {
      for (std::size_t w = 1; w < workers; ++w) threads_.emplace_back([this, w] { serve(w); });
    } catch (...) {
      join();
      throw;
    }
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() { join(); }

  std::size_t workers() const { return threads_.size() + 1; }

  /// work(task, worker) for each task below n; returns when all are done. Throws what one of them threw, once none is running:
  /// tasks that nobody had begun are left out then.
  void operator()(std::size_t n, const std::function<void(std::size_t, std::size_t)>& work) const {
    {
      const std::lock_guard lock(mutex_);
      work_ = &work, tasks_ = n, next_ = 0, busy_ = threads_.size(), ++round_;
    }
    wake_.notify_all();
    take(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    if (failed_) std::rethrow_exception(std::exchange(failed_, nullptr));
  }

 private:
  void join() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
  }

  void take(std::size_t worker) const {
    try {
      for (std::size_t i = next_++; i < tasks_; i = next_++) (*work_)(i, worker);
    } catch (...) {  // no room for scratch, say: it must not leave this thread while others are at work
      next_ = tasks_;
      const std::lock_guard lock(mutex_);
      failed_ = std::current_exception();
    }
  }

  void serve(std::size_t worker) const {
    for (std::size_t seen = 0;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || round_ != seen; });
        if (stop_) return;
        seen = round_;
      }
      take(worker);
      const std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  mutable std::mutex mutex_;
  mutable std::condition_variable wake_, done_;
  mutable const std::function<void(std::size_t, std::size_t)>* work_ = nullptr;
  mutable std::atomic<std::size_t> next_ = 0;
  mutable std::size_t tasks_ = 0, busy_ = 0, round_ = 0;
  mutable std::exception_ptr failed_;
  bool stop_ = false;
};
