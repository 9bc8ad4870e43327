//! A small safe wrapper of liblagkv (include/lagkv.h): dense caches of f32 or f16 bits, compressed in place.
use std::ffi::{c_char, c_void, CStr, CString};
use std::ptr::{null, null_mut};

#[repr(C)]
#[derive(Clone, Copy)]
struct RawView {
    data: *mut c_void,
    dtype: i32,
    reserved: i32,
    heads: usize,
    channels: usize,
    tokens: usize,
    head_stride: isize,
    token_stride: isize,
    channel_stride: isize,
    table: *const i32,
    table_size: usize,
    block_tokens: usize,
    block_stride: isize,
    pool_blocks: usize,
}

#[repr(C)]
struct RawLayer {
    keys: RawView,
    values: RawView,
    tokens: usize,
    extras: *const c_void,
}

#[repr(C)]
struct RawError {
    message: [c_char; 1024],
}

#[link(name = "lagkv")]
extern "C" {
    fn lagkv_dense_view(data: *mut c_void, dtype: i32, heads: usize, tokens: usize, channels: usize) -> RawView;
    fn lagkv_policy_parse(text: *const c_char, policy: *mut *mut c_void, error: *mut RawError) -> i32;
    fn lagkv_policy_free(policy: *mut c_void);
    fn lagkv_peak_rows(policy: *const c_void, chunk: usize, tokens: usize) -> usize;
    fn lagkv_cursor_new() -> *mut c_void;
    fn lagkv_cursor_free(cursor: *mut c_void);
    fn lagkv_cursor_seen(cursor: *const c_void) -> usize;
    fn lagkv_workspace_new(target: *const c_char, workspace: *mut *mut c_void, error: *mut RawError) -> i32;
    fn lagkv_workspace_free(workspace: *mut c_void);
    fn lagkv_compress(policy: *const c_void, layer: *const RawLayer, cursor: *mut c_void, workspace: *mut c_void, toward: i32,
                      tokens: *mut usize, error: *mut RawError) -> i32;
}

fn outcome(call: impl FnOnce(*mut RawError) -> i32) -> Result<(), String> {
    let mut error = RawError { message: [0; 1024] };
    match call(&mut error) {
        0 => Ok(()),
        _ => Err(unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy().into_owned()),
    }
}

/// Element types that a slice may hold; f16 as the bits of its numbers.
pub trait Element: Copy {
    const DTYPE: i32;
}
impl Element for f32 {
    const DTYPE: i32 = 0;
}
impl Element for u16 {
    const DTYPE: i32 = 1;
}

/// Which tokens stay. It is only read, so that threads may share it.
pub struct Policy(*mut c_void);
unsafe impl Send for Policy {}
unsafe impl Sync for Policy {}

impl Policy {
    /// "lagkv:lag=128,ratio=0.25"; the reason where the text is refused.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = CString::new(text).map_err(|e| e.to_string())?;
        let mut policy = null_mut();
        outcome(|e| unsafe { lagkv_policy_parse(text.as_ptr(), &mut policy, e) })?;
        Ok(Self(policy))
    }

    /// The most rows in use at once: what to allocate.
    pub fn peak_rows(&self, chunk: usize, tokens: usize) -> usize {
        unsafe { lagkv_peak_rows(self.0, chunk, tokens) }
    }
}
impl Drop for Policy {
    fn drop(&mut self) {
        unsafe { lagkv_policy_free(self.0) }
    }
}

/// One layer of one sequence: its cursor, and scratch of its own.
pub struct Compressor {
    cursor: *mut c_void,
    workspace: *mut c_void,
}
unsafe impl Send for Compressor {}

impl Compressor {
    pub fn new() -> Result<Self, String> {
        let mut made = Self { cursor: unsafe { lagkv_cursor_new() }, workspace: null_mut() };
        if made.cursor.is_null() {
            return Err("out of memory".into());
        }
        outcome(|e| unsafe { lagkv_workspace_new(null(), &mut made.workspace, e) })?;
        Ok(made)
    }

    /// Tokens of the sequence so far: the position of the next one.
    pub fn seen(&self) -> usize {
        unsafe { lagkv_cursor_seen(self.cursor) }
    }

    /// Compresses keys and values [heads][capacity][channels], of which the first `tokens` rows are in use, in place; the rows
    /// now in use.
    pub fn compress<T: Element>(&mut self, policy: &Policy, keys: &mut [T], values: &mut [T], heads: usize, channels: usize,
                                tokens: usize) -> Result<usize, String> {
        let row = heads.checked_mul(channels).filter(|&n| n > 0).ok_or("heads * channels: must be 1 or more")?;
        if keys.len() != values.len() || keys.len() % row != 0 {
            return Err(format!("keys of {}, values of {}: must be as many, and a multiple of {row}", keys.len(), values.len()));
        }
        let capacity = keys.len() / row;
        let view = |x: &mut [T]| unsafe { lagkv_dense_view(x.as_mut_ptr().cast(), T::DTYPE, heads, capacity, channels) };
        let layer = RawLayer { keys: view(keys), values: view(values), tokens, extras: null() };
        let mut rows = 0;
        outcome(|e| unsafe { lagkv_compress(policy.0, &layer, self.cursor, self.workspace, 0, &mut rows, e) })?;
        Ok(rows)
    }
}
impl Drop for Compressor {
    fn drop(&mut self) {
        unsafe {
            lagkv_cursor_free(self.cursor);
            lagkv_workspace_free(self.workspace);
        }
    }
}
