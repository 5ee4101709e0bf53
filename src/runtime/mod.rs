//! Tasks, timers and sockets of one thread, on io_uring or epoll. The only layer with `unsafe`.
