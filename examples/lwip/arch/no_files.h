/* no_files.h - lwIP's web server without files of its own: http.c brings all of them. */
#define FS_ROOT NULL
