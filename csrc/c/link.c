#include "link.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define BUFFER_NBYTES (1 << 18) /* more than the largest request; the kernel doubles it */

int kv_link_open(kv_link *link, const char *path, int timeout_ms) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
    int buffer_nbytes = BUFFER_NBYTES;
    memset(link, 0, sizeof *link);
    link->fd = -1;
    if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_nbytes, sizeof buffer_nbytes);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    link->fd = fd;
    pthread_mutex_init(&link->lock, NULL);
    return 0;
}

void kv_link_end(kv_link *link) {
    if (!atomic_exchange(&link->is_over, 1)) shutdown(link->fd, SHUT_RDWR);
}

void kv_link_disown(kv_link *link) {
    atomic_store(&link->is_over, 1);
    pthread_mutex_init(&link->lock, NULL); /* a thread of the parent may have had it */
}

void kv_link_close(kv_link *link) {
    if (link->fd < 0) return;
    close(link->fd);
    link->fd = -1;
    pthread_mutex_destroy(&link->lock);
}

void kv_link_watch(kv_link *link) {
    struct pollfd watched = {.fd = link->fd, .events = POLLRDHUP};
    while (!atomic_load(&link->is_over)) {
        if (poll(&watched, 1, -1) < 0 && errno != EINTR) return;
        if (watched.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) return;
    }
}

static int transmit(kv_link *link, const kv_call *call) {
    struct iovec parts[2] = {{call->request, call->request_nbytes}, {(void *)call->keys, call->keys_nbytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = call->keys_nbytes > 0 ? 2 : 1};
    ssize_t sent;
    do sent = sendmsg(link->fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

static void take_fds(struct msghdr *message, kv_call *call) {
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        call->num_fds = (uint32_t)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(call->fds, CMSG_DATA(header), call->num_fds * sizeof(int));
    }
}

static int receive(kv_link *link, kv_call *call) {
    struct iovec part = {call->reply, call->reply_max};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(KV_ATTACH_FDS_MAX * sizeof(int))];
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
        .msg_controllen = CMSG_LEN(KV_ATTACH_FDS_MAX * sizeof(int))}; /* sizeof control has room for one more */
    ssize_t got;
    do got = recvmsg(link->fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0) return errno == EAGAIN ? -ETIMEDOUT : -errno;
    take_fds(&message, call);
    if (got == 0) return -EPIPE;
    call->reply_nbytes = (size_t)got;
    int fits = got >= (ssize_t)sizeof(kv_message) && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) &&
               call->reply->magic == KV_ATTACH_MAGIC && call->reply->type == call->request->type &&
               call->reply->number == call->request->number;
    return fits ? 0 : -EPROTO;
}

int kv_link_call(kv_link *link, kv_call *call) {
    call->num_fds = 0;
    pthread_mutex_lock(&link->lock);
    call->request->magic = KV_ATTACH_MAGIC;
    call->request->number = ++link->number;
    int code = atomic_load(&link->is_over) ? -EPIPE : transmit(link, call);
    if (code == 0) code = receive(link, call);
    if (code < 0) {
        kv_link_end(link); /* an answer that is still to come would be taken for another's */
        for (uint32_t i = 0; i < call->num_fds; i++) close(call->fds[i]);
        call->num_fds = 0;
    }
    pthread_mutex_unlock(&link->lock);
    return code;
}
