/* JPEG storage tiles of one file decoded by libjpeg-turbo, many in one call and without Python's lock.

   Made where a compiler and jpeglib.h are (setup.py); jpeg_tiles.py is its only user and says what it is for.
   By threads of its own, so that few of Python's feed many cores.
   As strict as simplejpeg's strict=True: any warning of the library's refuses the tile. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jpeglib.h>

/* What became of a tile. */
enum { DECODED = 0, REFUSED = 1 };

/* Of one call. */
enum { MOST_THREADS = 64 };

/* Raised whenever what the functions take changes; jpeg_tiles.py asks for the same. */
enum { INTERFACE = 2 };

/* A tile: its bytes in the file; the memory that takes it, where its first pixel goes there and how many bytes a row of
   that memory has; and which of the tile's pixels are wanted. The same order as jpeg_tiles.COLUMNS. */
typedef struct {
  int64_t offset, count, target, start, pitch, x, y, width, height;
} Tile;

typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf leave;
} Errors;

typedef struct {
  int file, rgb;
  int64_t tile_width, tile_height;
  const unsigned char *head;
  Py_ssize_t head_bytes;
  unsigned char *bytes, *pixels; /* scratch: head and tile as stored; a tile's pixels */
  JSAMPROW *rows;
} Job;

static void on_error(j_common_ptr info) { longjmp(((Errors *)info->err)->leave, 1); }

static void on_message(j_common_ptr info, int level) {
  if (level < 0) longjmp(((Errors *)info->err)->leave, 1); /* a warning: damaged data */
}

/* The tile's whole stream in memory; its length, or 0 where it is no JPEG tile. */
static size_t load(const Job *job, const Tile *tile, unsigned char **stream) {
  unsigned char *data = job->bytes + job->head_bytes;
  int64_t done = 0, start = 2;
  while (done < tile->count) {
    ssize_t got = pread(job->file, data + done, (size_t)(tile->count - done), (off_t)(tile->offset + done));
    if (got <= 0) return 0;
    done += got;
  }
  if (tile->count < 8 || data[0] != 0xff || data[1] != 0xd8) return 0;
  if (job->rgb && data[2] == 0xff && data[3] == 0xe0) start += 2 + ((int64_t)data[4] << 8 | data[5]);
  if (start >= tile->count) return 0;
  memmove(data + start - job->head_bytes, job->head, (size_t)job->head_bytes);
  *stream = data + start - job->head_bytes;
  return (size_t)(job->head_bytes + tile->count - start);
}

static int decode(const Job *job, const Tile *tile, unsigned char *target) {
  struct jpeg_decompress_struct info;
  Errors errors;
  unsigned char *stream = NULL;
  size_t length = load(job, tile, &stream);
  int whole = tile->x == 0 && tile->y == 0 && tile->width == job->tile_width && tile->height == job->tile_height;
  if (!length) return REFUSED;
  memset(&info, 0, sizeof info);
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = on_error;
  errors.base.emit_message = on_message;
  if (setjmp(errors.leave)) {
    jpeg_destroy_decompress(&info);
    return REFUSED;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, stream, length);
  jpeg_read_header(&info, TRUE);
  info.out_color_space = JCS_RGB;
  if ((int64_t)info.image_width != job->tile_width || (int64_t)info.image_height != job->tile_height)
    longjmp(errors.leave, 1);
  jpeg_start_decompress(&info);
  if (info.output_components != 3) longjmp(errors.leave, 1);
  for (int64_t y = 0; y < job->tile_height; y++)
    job->rows[y] = whole ? target + tile->start + y * tile->pitch : job->pixels + y * job->tile_width * 3;
  while (info.output_scanline < info.output_height)
    jpeg_read_scanlines(&info, job->rows + info.output_scanline, info.output_height - info.output_scanline);
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  if (!whole)
    for (int64_t y = 0; y < tile->height; y++)
      memcpy(target + tile->start + y * tile->pitch, job->rows[tile->y + y] + 3 * tile->x, (size_t)tile->width * 3);
  return DECODED;
}

/* Why a tile must not be decoded into that memory; NULL where it may. */
static const char *problem(const Tile *t, const Job *job, const Py_buffer *targets, Py_ssize_t n) {
  if (t->offset < 0 || t->count < 0) return "a tile lies at no place of a file";
  if (t->target < 0 || t->target >= n) return "a tile names memory that was not given";
  if (t->x < 0 || t->y < 0 || t->width < 1 || t->height < 1 || t->x + t->width > job->tile_width ||
      t->y + t->height > job->tile_height)
    return "the pixels wanted are not all in the tile";
  if (t->start < 0 || t->pitch < t->width * 3 ||
      t->start + (t->height - 1) * t->pitch + t->width * 3 > targets[t->target].len)
    return "the pixels wanted do not fit into their memory";
  return NULL;
}

/* A call's tiles, which its threads take one after another. */
typedef struct {
  const Job *job;
  const Tile *tiles;
  Py_ssize_t n, next;
  int64_t most; /* bytes of the largest one as stored */
  const Py_buffer *targets;
  unsigned char *refused;
} Queue;

/* Decode tiles of the queue until none is left. Without memory for it, what it would have taken is left to others. */
static void *work(void *argument) {
  Queue *queue = argument;
  Job job = *queue->job;
  job.bytes = malloc((size_t)(queue->most + job.head_bytes + 16));
  job.pixels = malloc((size_t)(job.tile_width * job.tile_height * 3));
  job.rows = malloc(sizeof(JSAMPROW) * (size_t)job.tile_height);
  while (job.bytes && job.pixels && job.rows) {
    Py_ssize_t i = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
    if (i >= queue->n) break;
    queue->refused[i] = (unsigned char)decode(&job, &queue->tiles[i], queue->targets[queue->tiles[i].target].buf);
  }
  free(job.bytes);
  free(job.pixels);
  free(job.rows);
  return NULL;
}

static PyObject *run(const Job *job, const Tile *tiles, Py_ssize_t n, const Py_buffer *targets, Py_ssize_t n_targets,
                     unsigned char *refused, int threads) {
  Queue queue = {job, tiles, n, 0, 0, targets, refused};
  pthread_t helpers[MOST_THREADS];
  Py_ssize_t failed = 0;
  int started = 0;
  for (Py_ssize_t i = 0; i < n; i++) {
    const char *why = problem(&tiles[i], job, targets, n_targets);
    if (why) {
      PyErr_SetString(PyExc_ValueError, why);
      return NULL;
    }
    if (tiles[i].count > queue.most) queue.most = tiles[i].count;
    refused[i] = REFUSED;
  }
  if (threads > n) threads = (int)n;
  Py_BEGIN_ALLOW_THREADS
  while (started < threads - 1 && started < MOST_THREADS && !pthread_create(&helpers[started], NULL, work, &queue))
    started++;
  work(&queue);
  while (started > 0) pthread_join(helpers[--started], NULL);
  Py_END_ALLOW_THREADS
  if (n && queue.next < n) return PyErr_NoMemory();
  for (Py_ssize_t i = 0; i < n; i++) failed += refused[i];
  return PyLong_FromSsize_t(failed);
}

static PyObject *decode_tiles(PyObject *self, PyObject *args) {
  Job job = {0};
  PyObject *targets, *result = NULL;
  Py_buffer head, tiles, refused, *buffers = NULL;
  Py_ssize_t n_targets, held = 0;
  int tile_width, tile_height, threads;
  (void)self;
  if (!PyArg_ParseTuple(args, "iy*p(ii)y*O!w*i", &job.file, &head, &job.rgb, &tile_width, &tile_height, &tiles,
                        &PyTuple_Type, &targets, &refused, &threads))
    return NULL;
  job.tile_width = tile_width;
  job.tile_height = tile_height;
  job.head = head.buf;
  job.head_bytes = head.len;
  n_targets = PyTuple_Size(targets);
  buffers = calloc((size_t)n_targets + 1, sizeof *buffers);
  if (!buffers) {
    PyErr_NoMemory();
  } else if (tile_width < 1 || tile_height < 1 || tiles.len % (Py_ssize_t)sizeof(Tile) ||
             refused.len != tiles.len / (Py_ssize_t)sizeof(Tile)) {
    PyErr_SetString(PyExc_ValueError, "expected a row of numbers and a byte a tile, and a tile's size");
  } else {
    while (held < n_targets &&
           PyObject_GetBuffer(PyTuple_GetItem(targets, held), &buffers[held], PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) == 0)
      held++;
    if (held == n_targets)
      result = run(&job, tiles.buf, tiles.len / (Py_ssize_t)sizeof(Tile), buffers, n_targets, refused.buf,
                   threads);
  }
  while (held > 0) PyBuffer_Release(&buffers[--held]);
  free(buffers);
  PyBuffer_Release(&head);
  PyBuffer_Release(&tiles);
  PyBuffer_Release(&refused);
  return result;
}

/* A rectangle: which memory it lies in, from which byte on and how many a row has there; the same of where it goes; how
   many bytes a row and how many rows. The same order as jpeg_tiles.COPIED. */
typedef struct {
  int64_t source, from, source_pitch, to, pitch, width, height;
} Rectangle;

/* Whether all of it lies within both. */
static int fits(const Rectangle *r, const Py_buffer *sources, Py_ssize_t n, Py_ssize_t target_bytes) {
  return r->source >= 0 && r->source < n && r->from >= 0 && r->to >= 0 && r->width > 0 && r->height > 0 &&
         r->source_pitch >= r->width && r->pitch >= r->width &&
         r->from + (r->height - 1) * r->source_pitch + r->width <= sources[r->source].len &&
         r->to + (r->height - 1) * r->pitch + r->width <= target_bytes;
}

static PyObject *copy_all(const Rectangle *rectangles, Py_ssize_t n, const Py_buffer *sources, Py_ssize_t n_sources,
                          const Py_buffer *target) {
  for (Py_ssize_t i = 0; i < n; i++)
    if (!fits(&rectangles[i], sources, n_sources, target->len)) {
      PyErr_SetString(PyExc_ValueError, "a rectangle does not lie within its memory");
      return NULL;
    }
  Py_BEGIN_ALLOW_THREADS
  for (Py_ssize_t i = 0; i < n; i++) {
    const Rectangle *r = &rectangles[i];
    const unsigned char *from = (const unsigned char *)sources[r->source].buf + r->from;
    unsigned char *to = (unsigned char *)target->buf + r->to;
    for (int64_t y = 0; y < r->height; y++, from += r->source_pitch, to += r->pitch)
      memcpy(to, from, (size_t)r->width);
  }
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

static PyObject *copy_rectangles(PyObject *self, PyObject *args) {
  PyObject *sources, *result = NULL;
  Py_buffer rectangles, target, *buffers = NULL;
  Py_ssize_t n_sources, held = 0;
  (void)self;
  if (!PyArg_ParseTuple(args, "y*O!w*", &rectangles, &PyTuple_Type, &sources, &target)) return NULL;
  n_sources = PyTuple_Size(sources);
  buffers = calloc((size_t)n_sources + 1, sizeof *buffers);
  if (!buffers) {
    PyErr_NoMemory();
  } else if (rectangles.len % (Py_ssize_t)sizeof(Rectangle)) {
    PyErr_SetString(PyExc_ValueError, "expected a row of numbers a rectangle");
  } else {
    while (held < n_sources &&
           PyObject_GetBuffer(PyTuple_GetItem(sources, held), &buffers[held], PyBUF_C_CONTIGUOUS) == 0)
      held++;
    if (held == n_sources)
      result = copy_all(rectangles.buf, rectangles.len / (Py_ssize_t)sizeof(Rectangle), buffers, n_sources, &target);
  }
  while (held > 0) PyBuffer_Release(&buffers[--held]);
  free(buffers);
  PyBuffer_Release(&rectangles);
  PyBuffer_Release(&target);
  return result;
}

static PyMethodDef methods[] = {
    {"decode_tiles", decode_tiles, METH_VARARGS,
     "decode_tiles(file, head, rgb, (width, height), tiles, targets, refused, threads): how many tiles were refused."},
    {"copy_rectangles", copy_rectangles, METH_VARARGS,
     "copy_rectangles(rectangles, sources, target): copy each rectangle of bytes into the target."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_jpeg_tiles", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg_tiles(void) {
  PyObject *made = PyModule_Create(&module);
  if (made && PyModule_AddIntConstant(made, "INTERFACE", INTERFACE) < 0) {
    Py_DECREF(made);
    return NULL;
  }
  return made;
}
